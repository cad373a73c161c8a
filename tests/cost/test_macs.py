import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from lightning_compress.cost.macs import macs
from lightning_compress.models.mlp import lenet_300_100
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from tests.prune.graphs import Layer

# (layer, input of one sample, MACs by hand: output positions x output channels x inputs of one output)
LAYERS = [
    (nn.Linear(6, 4), (6,), 4 * 6),
    (nn.Linear(6, 4, bias=False), (5, 3, 6), 5 * 3 * 4 * 6),
    (nn.Conv1d(4, 6, 3), (4, 10), 8 * 6 * 4 * 3),
    (nn.Conv2d(3, 8, (3, 5), padding=1), (3, 10, 12), 10 * 10 * 8 * 3 * 15),
    (nn.Conv2d(4, 8, 3, stride=2, padding=1), (4, 9, 9), 25 * 8 * 4 * 9),
    (nn.Conv2d(4, 8, 3, dilation=2), (4, 9, 9), 25 * 8 * 4 * 9),
    (nn.Conv2d(8, 8, 3, groups=8, padding=1), (8, 6, 6), 36 * 8 * 9),
    (nn.Conv2d(8, 16, 3, groups=4), (8, 6, 6), 16 * 16 * 2 * 9),
    (nn.Conv3d(2, 4, 3), (2, 5, 6, 7), 3 * 4 * 5 * 4 * 2 * 27),
    # Each input value meets each kernel value of each output channel of its group once.
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 10), 10 * 4 * 6 * 3),
    (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (4, 5, 5), 25 * 4 * 6 * 16),
    (nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3), 27 * 2 * 3 * 8),
]
GROUPED_TRANSPOSED = (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5), 25 * 4 * 3 * 9)


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [*LAYERS, GROUPED_TRANSPOSED],
    ids=lambda v: str(v) if isinstance(v, nn.Module) else "",
)
def test_layer_by_hand(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert macs(layer, torch.zeros(3, *shape)) == {"": expected}


@pytest.mark.parametrize(
    ("layer", "shape", "expected"), LAYERS, ids=lambda v: str(v) if isinstance(v, nn.Module) else ""
)
def test_half_the_flops_of_torch(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, *shape))
    assert counter.get_total_flops() == 2 * expected


def test_whole_networks_against_torch() -> None:
    for net, example in (
        (ResNetCIFAR(14, shortcut="B", width=0.5).eval(), torch.zeros(4, 3, 32, 32)),
        (lenet_300_100().eval(), torch.zeros(4, 1, 28, 28)),
    ):
        with FlopCounterMode(display=False) as counter:
            net(example)
        assert 4 * 2 * sum(macs(net, example).values()) == counter.get_total_flops()


def test_published_lenet_300_100() -> None:
    counts = macs(lenet_300_100(), torch.zeros(1, 1, 28, 28))
    assert counts == {"fc1": 235_200, "fc2": 30_000, "fc3": 1_000}
    assert round(sum(counts.values()) / 1e6, 2) == 0.27


def test_leaves_no_trace() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8, 2))
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    random_state = torch.get_rng_state()
    macs(net, torch.randn(2, 1, 4, 4))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())
    # Only the draw of the example itself moved the generator.
    torch.set_rng_state(random_state)
    torch.randn(2, 1, 4, 4)
    expected = torch.get_rng_state()
    torch.set_rng_state(random_state)
    macs(net, torch.randn(2, 1, 4, 4))
    assert torch.equal(torch.get_rng_state(), expected)


def test_leaves_no_trace_when_the_forward_fails() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        macs(net, torch.zeros(1, 4))
    assert net.training
    assert not net[0]._forward_hooks


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.shared(self.shared(inputs))
        return outputs


def test_counts_each_call() -> None:
    assert macs(Twice(), torch.zeros(1, 4)) == {"shared": 32, "unused": 0}


def test_counts_a_parametrized_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 2))
    parametrize.register_parametrization(net[0], "weight", nn.Identity())
    assert macs(net, torch.zeros(1, 4)) == {"0": 8}


@pytest.mark.parametrize(
    ("layer", "inputs", "expected"),
    [
        (nn.LSTM(3, 5, batch_first=True), torch.zeros(2, 7, 3), 7 * 4 * 5 * (3 + 5)),
        (nn.GRU(3, 5, batch_first=True), torch.zeros(2, 7, 3), 7 * 3 * 5 * (3 + 5)),
        (nn.RNN(3, 5, batch_first=True, bias=False), torch.zeros(2, 7, 3), 7 * 5 * (3 + 5)),
        (
            nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True),
            torch.zeros(2, 7, 3),
            7 * 2 * (4 * 5 * (3 + 5) + 4 * 5 * (10 + 5)),  # the second layer reads both directions of the first
        ),
        (nn.LSTM(3, 5, batch_first=True, proj_size=2), torch.zeros(2, 7, 3), 7 * (4 * 5 * (3 + 2) + 2 * 5)),
        (nn.GRUCell(3, 5), torch.zeros(2, 3), 3 * 5 * (3 + 5)),
        (nn.Embedding(9, 4), torch.zeros(2, 7, dtype=torch.int64), 0),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_recurrent_layers_count_once_a_step(layer: nn.Module, inputs: Tensor, expected: int) -> None:
    assert macs(nn.Sequential(layer), inputs) == {"0": expected}


def test_packed_steps_alone_count() -> None:
    class Packs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 5, batch_first=True)

        def forward(self, inputs: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(inputs, torch.tensor([4]), batch_first=True)
            outputs: Tensor = self.rnn(packed)[1]
            return outputs

    assert macs(Packs(), torch.zeros(1, 7, 3)) == {"rnn": 4 * 3 * 5 * (3 + 5)}


class Attends(nn.Module):
    """PyTorch's attention of 8 features in 2 heads over what has `width`, from the first 3 places."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, kdim=width, vdim=width)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.attention(inputs[:, :3, :8], key=inputs, value=inputs)[0]
        return outputs


@pytest.mark.parametrize("width", [8, 12])
def test_the_projections_of_attention_count(width: int) -> None:
    inputs = torch.zeros(1, 7, width)
    counts = {"attention": 8 * (3 * 8 + 2 * 7 * width), "attention.out_proj": 3 * 8 * 8}
    assert macs(Attends(width), inputs) == counts
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Attends(width)(inputs)
    products = 2 * 3 * 7 * 8  # scores, and what they mix
    assert counter.get_total_flops() == 2 * (sum(counts.values()) + products)


@pytest.mark.parametrize("kind", ["torch", "fused"])
def test_attention_costs_the_same_however_it_is_written(kind: str) -> None:
    inputs = torch.zeros(2, 6, 24)
    assert sum(macs(Layer(kind), inputs).values()) == sum(macs(Layer("apart"), inputs).values())


def test_a_fused_encoder_is_counted_layer_by_layer() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    counts = macs(nn.TransformerEncoder(layer, 2), torch.zeros(1, 5, 8))
    of_layer = {"self_attn": 3 * 5 * 64, "self_attn.out_proj": 5 * 64, "linear1": 5 * 128, "linear2": 5 * 128}
    assert counts == {f"layers.{i}.{name}": count for i in range(2) for name, count in of_layer.items()}
    assert torch.backends.mha.get_fastpath_enabled()


def test_refuses_layers_without_a_rule() -> None:
    with pytest.raises(ValueError, match="no rule for the multiply-accumulates of '0', a Bilinear"):
        macs(nn.Sequential(nn.Bilinear(4, 4, 2)), torch.zeros(1, 4))
