import functools
import inspect
from collections.abc import Callable

import pytest
import torch
from hydra.utils import get_object
from torch import nn

from lightning_compress.models.shared_trunk import SharedTrunk, shared_trunk, side_by_side
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.run.config import build as instantiate
from lightning_compress.run.config import compose
from tests.models.test_models import IMAGES, build, settings

HEADS = {"digit": 7, "parity": 2}


@pytest.mark.parametrize("name", IMAGES)
def test_the_trunk_is_the_network_without_its_classifier(name: str) -> None:
    whole, inputs = build(name, width=0.25)
    options = dict(settings(name))
    trunk = functools.partial(get_object(str(options.pop("_target_"))), **options, width=0.25)
    if "num_features" in inspect.signature(get_object(str(settings(name)["_target_"]))).parameters:
        trunk = functools.partial(trunk, num_features=inputs.shape[-1])
    net = shared_trunk(trunk, HEADS, in_channels=inputs.shape[1], image_size=inputs.shape[-1])
    *rest, weight, bias = whole.state_dict().items()
    net.trunk.load_state_dict(dict(rest))
    net.heads["digit"].load_state_dict({"weight": weight[1], "bias": bias[1]})
    outputs = net.eval()(inputs)
    assert torch.equal(outputs["digit"], whole.eval()(inputs))
    assert outputs["parity"].shape == (2, 2)


def test_networks_side_by_side_are_what_they_are_alone() -> None:
    nets: dict[str, Callable[..., nn.Module]] = {"digit": functools.partial(SmallConv, width=0.25), "parity": SmallConv}
    net, inputs = side_by_side(nets, HEADS, image_size=8).eval(), torch.randn(3, 1, 8, 8)
    for head, outputs in net(inputs).items():
        alone = nets[head](num_classes=HEADS[head])
        alone.load_state_dict(net.heads[head].state_dict())
        assert torch.equal(outputs, alone.eval()(inputs))


def test_the_trunk_runs_once() -> None:
    class Counted(nn.Identity):
        calls = 0

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return inputs

    trunk = Counted()
    SharedTrunk(trunk, {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})(torch.zeros(1, 2))
    assert trunk.calls == 1


def test_the_presets_take_another_network() -> None:
    model = compose(["model=shared_trunk", "model@model.trunk=resnet8", "model.trunk.width=0.25"])["model"]
    made = instantiate(model, num_classes=HEADS, in_channels=3, image_size=32)
    assert (type(made.trunk).__name__, made.heads["parity"].in_features) == ("ResNetCIFAR", 16)
    model = compose(["model=side_by_side", "model@model.networks.small=mlp", "model.networks.small.width=0.1"])["model"]
    made = instantiate(model, num_classes={"small": 10, "large": 10}, in_channels=1, image_size=8)
    assert {name: type(net).__name__ for name, net in made.heads.items()} == {"large": "SmallConv", "small": "MLP"}


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"shared_trunk needs num_classes by head, .* got 10: give the data heads"):
        shared_trunk(SmallConv, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cuts off the last linear layer, and ReLU has none"):
        shared_trunk(lambda: nn.ReLU(), HEADS)
    with pytest.raises(ValueError, match="networks a, and the data the heads digit, parity: name them alike"):
        side_by_side({"a": SmallConv}, HEADS)
    with pytest.raises(ValueError, match="needs heads"):
        SharedTrunk(nn.Identity(), {})
