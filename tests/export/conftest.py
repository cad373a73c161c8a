from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.compressor import Compressor
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.data.digits import Digits
from lightning_compress.quantize.method import Quantize

ARCHITECTURE = {"name": "net", "width": 8}


def build_net(architecture: dict[str, Any]) -> nn.Module:
    width = architecture["width"]
    layers = {
        "conv1": nn.Conv2d(1, width, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(width, 2 * width, 3, padding=1),
        "relu2": nn.ReLU(),
        "conv3": nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        "bn3": nn.BatchNorm2d(2 * width),
        "relu3": nn.ReLU(),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(2 * width * 16, 32),
        "relu4": nn.ReLU(),
        "fc2": nn.Linear(32, 10),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net


def symmetric(weight: Tensor, bits: int, mask: Tensor | None = None) -> Stored:
    """Per output channel, as one would write it by hand."""
    stored = Stored(weight) if mask is None else Stored(weight).masked(mask)
    shape = [-1] + [1] * (weight.dim() - 1)
    high = 2 ** (bits - 1) - 1
    scale = (stored.value.abs().flatten(1).amax(1) / high).clamp_min(1e-8)
    codes = (stored.value / scale.reshape(shape)).round().clamp(-high, high)
    return stored.coded(codes, scale, bits=bits, axis=0)


def affine(weight: Tensor, bits: int) -> Stored:
    low, high = min(0.0, float(weight.min())), max(0.0, float(weight.max()))
    scale = torch.tensor((high - low) / (2**bits - 1))
    zero = (-low / scale).round()
    codes = ((weight / scale).round() + zero).clamp(0, 2**bits - 1)
    return Stored(weight).coded(codes, scale, zero, bits=bits, symmetric=False)


def raw(model: nn.Module) -> dict[str, Stored]:
    return {name: Stored(getattr(*at).detach().clone()) for name, at in surgery.own_names(model).items()}


def load(model: nn.Module, stored: dict[str, Stored]) -> None:
    for name, (module, attribute) in surgery.own_names(model).items():
        getattr(module, attribute).data.copy_(stored[name].value)


@pytest.fixture
def build() -> Callable[[dict[str, Any]], nn.Module]:
    return build_net


@pytest.fixture
def compact() -> Compact:
    """All there is in one model: 4-bit masked, 8-bit and 2-bit per channel, 8-bit affine, raw, kept batch norm."""
    torch.manual_seed(0)
    done = [edits.fold("bn1", "conv1"), edits.keep("conv3", "out", torch.arange(0, 16, 2))]
    done += [edits.keep("bn3", "out", torch.arange(0, 16, 2))]
    done += [edits.keep("fc1", "in", torch.arange(256).reshape(16, 16)[::2].reshape(-1))]
    model = edits.replay(build_net(ARCHITECTURE), done).eval().requires_grad_(False)
    model.get_buffer("bn3.running_var").uniform_(0.5, 2.0)
    stored = raw(model)
    value = {name: entry.value for name, entry in stored.items()}
    mask = torch.rand_like(value["conv2.weight"]) < 0.2
    mask[3] = False
    stored["conv1.weight"] = symmetric(value["conv1.weight"], 8)
    stored["conv1.bias"] = Stored(torch.randn(8))
    stored["conv2.weight"] = symmetric(value["conv2.weight"], 4, mask)
    stored["conv3.weight"] = symmetric(value["conv3.weight"], 2)
    stored["fc1.weight"] = affine(value["fc1.weight"] + 0.01, 8)
    stored["fc2.weight"] = Stored(value["fc2.weight"]).masked(torch.rand_like(value["fc2.weight"]) < 0.5)
    load(model, stored)
    for name, scale, zero, low, high in [
        ("conv1", 0.03, 0, -128, 127),
        ("conv2", 0.2, 0, 0, 15),
        ("conv3", 0.01, 0, 0, 255),
        ("fc1", 0.02, 9, 0, 255),
    ]:
        fixed = FixedQuantizer(torch.tensor(scale), torch.tensor(zero), low, high)
        surgery.put_on_input(model.get_submodule(name), fixed)
    return Compact(model, stored, done)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """Convolutions, an addition, both poolings and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.pool2 = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.bn1(self.conv1(inputs))))
        x = self.relu3(self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(x))))) + x)
        outputs: Tensor = self.fc(self.pool2(x).flatten(1))
        return outputs


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """Real inputs."""
    data = Digits(eval_batch_size=64)
    data.prepare_data()
    data.setup("fit")
    inputs: Tensor = next(iter(data.val_dataloader()))[0]
    return inputs.contiguous()


@pytest.fixture(scope="session")
def residual(digits: Tensor) -> Callable[[int | None, int | None], Compact]:
    """Makes the residual net with so many bits for weights and activations, calibrated on digits; None: floats."""

    def make(weight_bits: int | None, activation_bits: int | None) -> Compact:
        torch.manual_seed(0)
        net: nn.Module = Residual()
        with torch.no_grad():
            for _ in range(30):
                net.train()(digits)
        if weight_bits is None and activation_bits is None:
            return Compact(surgery.plain(net).eval(), raw(net))
        compressor = Compressor([Quantize(weight_bits, activation_bits, outputs=activation_bits is not None)])
        net = compressor.attach(net, digits[:1])
        compressor.prepare(net, [(digits, None)])
        return compressor.finalize(net, digits[:1])

    return make
