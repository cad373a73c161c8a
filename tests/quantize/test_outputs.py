import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core import surgery
from lightning_compress.core.compressor import Compressor
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.quantize import learned, uniform
from lightning_compress.quantize.method import Quantize
from lightning_compress.quantize.outputs import found


class Block(nn.Module):
    """A residual block in the manner of torchvision: one rectifier, in place, for both places."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.second(self.relu(self.first(inputs)))
        outputs += inputs
        rectified: Tensor = self.relu(outputs)
        return rectified


class Fork(nn.Module):
    """Two layers that read one output, a concatenation, and a sum that no module puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop, self.last = nn.Dropout(), nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        stem = self.drop(self.stem(inputs))
        both = torch.cat([self.left(stem), F.relu(self.right(stem))], dim=1)
        outputs: Tensor = self.last(both)
        return outputs


@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_that_runs_twice_leaves_it_to_the_one_around_it(inplace: bool) -> None:
    net = nn.Sequential(Block(inplace=inplace), Block(inplace=inplace))
    layers = ["0.first", "0.second", "1.first", "1.second"]
    assert found(net, torch.ones(1, 4), layers) == {"0.second": [], "0": ["1.first"], "1.second": []}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_forks_and_concatenations() -> None:
    assert found(Fork().train(), torch.ones(2, 4), ["left", "right", "last"]) == {
        "stem": ["left", "right"],
        "left": [],
    }


def test_zero_padding_of_a_shortcut_is_seen_through() -> None:
    places = found(ResNetCIFAR(8), torch.zeros(1, 3, 8, 8), ["conv1", "layer2.0.conv1", "layer3.0.conv1", "fc"])
    assert places["layer1.0.relu2"] == ["layer2.0.conv1"]
    assert places["layer2.0.shortcut"] == []
    assert len(places) == 1 + 3 * 2 + 2  # what is added, the two padded shortcuts, the last of them into the pool


def calibrated(quantize: Quantize, net: nn.Module, inputs: Tensor) -> tuple[Compressor, nn.Module]:
    compressor = Compressor([quantize])
    net = compressor.attach(net, inputs[:1])
    compressor.prepare(net, [(inputs, None)])
    return compressor, net


def finalized(quantize: Quantize, net: nn.Module, inputs: Tensor) -> Compact:
    compressor, net = calibrated(quantize, net, inputs)
    return compressor.finalize(net, inputs[:1])


def fixed(model: nn.Module, name: str) -> FixedQuantizer:
    found = model.get_submodule(name)
    assert isinstance(found, FixedQuantizer)
    return found


def test_what_is_deployed_is_what_training_computed() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 3, 8, 8)
    compressor, net = calibrated(Quantize(8, 8, outputs=True), ResNetCIFAR(8, width=0.5), inputs)
    compact = compressor.finalize(net, inputs[:1])
    assert torch.allclose(compact.model(inputs), net.eval()(inputs), atol=0.05)
    assert not hasattr(surgery.plain(net).get_submodule("layer1.0.relu2"), surgery.OUTPUT_CHILD)
    names = {name for name, module in compact.model.named_modules() if isinstance(module, FixedQuantizer)}
    assert {"layer1.0.bn2.output_quantizer", "conv1.input_quantizer", "fc.input_quantizer"} <= names
    relu, conv = (compact.model.get_submodule(name) for name in ("layer1.0.relu2", "layer2.0.conv1"))
    assert relu.output_quantizer is conv.input_quantizer
    state = compact.model.state_dict()
    assert state.keys() == compact.stored.keys() - {n for n in compact.stored if n.endswith("num_batches_tracked")}
    assert all(torch.equal(compact.stored[name].value, value) for name, value in state.items())


def test_what_is_added_lies_on_8_bit_grids() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(32, 4)
    compact = finalized(Quantize(8, 4, outputs=True), nn.Sequential(Block(inplace=False), Block(inplace=False)), inputs)
    seen = {}
    for name in ("0", "0.second"):
        compact.model.get_submodule(name).register_forward_hook(
            lambda _m, _a, out, name=name: seen.update({name: out.clone()})
        )
    compact.model(inputs)
    for name, values in seen.items():
        quantizer = fixed(compact.model, f"{name}.output_quantizer")
        assert quantizer.bits == 8
        codes = values / quantizer.scale
        assert torch.allclose(codes, codes.round(), atol=1e-3)
        assert len(values.unique()) > 16
    reader = fixed(compact.model, "1.first.input_quantizer")
    assert reader.bits == 4, "a layer of other bits keeps its own"


def test_kinds_and_learnables() -> None:
    net = Quantize(8, 8, activations="lsq", outputs=True)
    model = net.attach(nn.Sequential(Block(inplace=False), Block(inplace=False)), torch.ones(1, 4))
    assert isinstance(model.get_submodule("0").output_quantizer, learned.LSQInput)
    assert isinstance(model.get_submodule("0.second").output_quantizer, uniform.Observed)
    assert not hasattr(model.get_submodule("1.first"), surgery.INPUT_CHILD)


def test_ranges_follow_the_batches() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 4)
    compressor, net = calibrated(Quantize(8, 8, outputs=True), nn.Sequential(Block(inplace=False)), inputs)
    quantizer = net.get_submodule("0.second.output_quantizer")
    assert isinstance(quantizer, uniform.Observed)
    before = quantizer.range.clone()
    net.get_parameter("0.second.bias").data.add_(5.0)
    for _ in range(5):
        net.train()(inputs)
        compressor.update(net)
    assert float(quantizer.range[1]) > 1.5 * float(before[1])


def test_nothing_to_add_is_said() -> None:
    with pytest.raises(ValueError, match="outputs=True, but no module's output goes into an addition"):
        Quantize(outputs=True).attach(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
    with pytest.raises(ValueError, match="outputs=True, but activation_bits is null"):
        Quantize(4, None, outputs=True)
