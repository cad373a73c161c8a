import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.stored import Stored
from lightning_compress.core.surgery import put_on_input, put_on_output
from lightning_compress.cost.bops import bops
from lightning_compress.cost.macs import macs
from lightning_compress.cost.record import LayerCost, layer_table, operands
from lightning_compress.models.resnet_cifar import ResNetCIFAR


def levels(low: int, high: int) -> FixedQuantizer:
    return FixedQuantizer(torch.tensor(0.1), torch.tensor(0), low, high)


def raw(model: nn.Module) -> dict[str, Stored]:
    names = {id(tensor): name for name, tensor in reversed([*model.named_parameters(), *model.named_buffers()])}
    return {name: Stored(model.state_dict()[name]) for name in names.values()}


def test_row_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    put_on_input(net[3], levels(0, 15))
    stored = raw(net)
    codes = torch.tensor([[[[1, 0], [3, 0]]], [[[0, 0], [-2, 1]]]])
    stored["0.weight"] = stored["0.weight"].coded(codes, torch.tensor([0.5, 0.25]), bits=3, axis=0)
    sizes = {
        "0.weight": 5,
        "0.bias": 8,
        "3.weight": 96,
        "3.bias": 12,
        "3.input_quantizer.scale": 4,
        "3.input_quantizer.zero_point": 1,
    }
    table = layer_table(net, stored, torch.zeros(2, 1, 3, 3), sizes)
    assert table == [
        LayerCost("0", "Conv2d", (2, 1, 2, 2), 3, 3, 32, 0.5, 4 * 2 * 4, 13),
        LayerCost("3", "Linear", (3, 8), 32, 32, 4, 0.0, 24, 113),
    ]


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [(-127, 127, 8), (-128, 127, 8), (0, 255, 8), (-7, 7, 4), (0, 15, 4), (0, 3, 2), (-1, 1, 2), (0, 1, 1)],
)
def test_activation_bits_hold_all_levels(low: int, high: int, bits: int) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    put_on_input(net[0], levels(low, high))
    assert layer_table(net, raw(net), torch.zeros(1, 2))[0].activation_bits == bits


def test_a_codebook_is_stored_in_few_bits_and_multiplied_in_floats() -> None:
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False))
    stored = raw(net)
    codes = torch.arange(8).reshape(2, 4)
    stored["0.weight"] = stored["0.weight"].chosen(codes, torch.linspace(-1, 1, 8) ** 3 + 0.01)
    stored["1.weight"] = stored["1.weight"].chosen(codes[:, :2], torch.tensor([-30.0, 0, 1, 2, 7, 31]), torch.ones(2))
    rows = layer_table(net, stored, torch.zeros(1, 4))
    assert [(row.weight_bits, row.arithmetic_bits) for row in rows] == [(3, 32), (3, 6)]


def test_columns_add_up_to_the_model() -> None:
    net = ResNetCIFAR(8, width=0.25, shortcut="B").eval()
    stored = raw(net)
    sizes = {name: i + 1 for i, name in enumerate(stored)}
    example = torch.zeros(1, 3, 8, 8)
    table = layer_table(net, stored, example, sizes)
    assert sum(row.bytes for row in table) == sum(sizes.values())
    assert sum(row.macs for row in table) == sum(macs(net, example).values())
    assert [row.name for row in table][:3] == ["conv1", "bn1", "layer1.0.conv1"]
    assert {row.kind for row in table} == {"Conv2d", "BatchNorm2d", "Linear"}


class Odd(nn.Module):
    """A parameter at the root, an affine-free norm, and two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.tensor([0.0, 1.0]))
        self.norm = nn.LayerNorm(2, elementwise_affine=False)
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.third = nn.Linear(2, 2, bias=False)
        self.third.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.third(self.second(self.first(self.norm(inputs + self.token))))
        return outputs


def test_root_parameters_and_tied_weights() -> None:
    net = Odd()
    stored = raw(net)
    assert stored.keys() == {"token", "first.weight", "second.bias"}
    stored["first.weight"] = stored["first.weight"].masked(torch.eye(2, dtype=torch.bool))
    table = layer_table(net, stored, torch.zeros(1, 2), {"token": 8, "first.weight": 16, "second.bias": 8})
    assert table == [
        LayerCost("", "Odd", (2,), 32, 32, 32, 0.5, 0, 8),
        LayerCost("first", "Linear", (2, 2), 32, 32, 32, 0.5, 4, 16),
        LayerCost("second", "Linear", (2, 2), 32, 32, 32, 0.5, 4, 8),
        LayerCost("third", "Linear", (2, 2), 32, 32, 32, 0.5, 4, 0),
    ]


def test_refuses_bytes_of_a_tensor_that_is_not_stored() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"not stored: 1\.weight"):
        layer_table(net, raw(net), torch.zeros(1, 2), {"1.weight": 4})


def test_a_quantizer_on_an_output_counts_where_it_is() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    shared = levels(0, 15)
    put_on_output(net[1], shared)
    put_on_input(net[2], shared)
    stored = raw(net) | {f"1.output_quantizer.{name}": Stored(value) for name, value in shared.named_buffers()}
    table = layer_table(net, stored, torch.zeros(1, 2), {"0.weight": 7, "1.output_quantizer.scale": 4})
    assert [(row.name, row.bytes, row.activation_bits) for row in table] == [("0", 7, 32), ("2", 4, 4)]


def test_bit_operations_of_a_recurrent_layer_are_those_of_its_weights_and_of_float_states() -> None:
    net = nn.Sequential(nn.LSTM(5, 8, num_layers=2, batch_first=True, bias=False))
    put_on_input(net[0], levels(0, 255))
    stored = raw(net)
    bits = {"weight_ih_l0": 8, "weight_hh_l0": 2, "weight_ih_l1": 3, "weight_hh_l1": 4}
    for name, width in bits.items():
        value = stored[f"0.{name}"]
        stored[f"0.{name}"] = value.coded(torch.zeros_like(value.value), torch.ones(()), bits=width)
    rows = layer_table(net, stored, torch.zeros(1, 6, 5))
    assert bops(*operands(net, stored, rows)) == 6 * 32 * (5 * 8 * 8 + 8 * (2 + 3 + 4) * 32)
