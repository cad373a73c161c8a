import copy
import json
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core import edits, reused
from lightning_compress.core.method import Edit

LINEAR: Edit = {"kind": "reuse", "layer": "4", "shape": [3, 12], "widths": [5, 12]}
MAPS: Edit = {**LINEAR, "shape": [3, 8], "widths": [5, 4, 8], "after": "1", "relu": True}


def net() -> Any:
    return nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


def test_the_shapes_and_names_by_hand() -> None:
    linear = edits.replay(net(), json.loads(json.dumps([LINEAR])))
    names = [f"4.{name}" for name in ("projector.weight", "projector.bias", "classifier.weight", "classifier.bias")]
    assert {name: list(linear.state_dict()[name].shape) for name in names} == dict(
        zip(names, ([12, 5], [12], [3, 12], [3]), strict=True)
    )
    assert list(linear.state_dict())[:2] == ["0.weight", "0.bias"]
    maps: Any = edits.replay(net(), json.loads(json.dumps([{**MAPS, "size": [2, 2]}])))
    kinds = [type(each).__name__ for each in maps[1].projector]
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    assert kinds == ["AdaptiveAvgPool2d", *block * 3]
    convs = [tuple(each.weight.shape) for each in maps[1].projector if isinstance(each, nn.Conv2d)]
    assert convs == [(4, 5, 1, 1), (4, 4, 3, 3), (8, 4, 1, 1)]
    assert maps[1].projector(maps[1].before(maps[0](torch.ones(2, 1, 8, 8)))).shape == (2, 8, 2, 2)
    assert maps(torch.ones(2, 1, 8, 8)).shape == (2, 3)
    signed: Any = edits.replay(net(), [{**MAPS, "relu": False}])
    assert isinstance(signed[1].projector[-1], nn.BatchNorm2d)


def test_a_sequential_gets_it_at_its_end_and_nothing_is_drawn() -> None:
    base: Any = nn.Sequential(nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU()), *net()[2:])
    before = copy.deepcopy(base.state_dict())
    generator = torch.get_rng_state()
    made: Any = edits.replay(base.eval(), [{**MAPS, "layer": "3", "after": "0"}])
    assert torch.equal(generator, torch.get_rng_state())
    assert [name for name, _ in made[0].named_children()] == ["0", "1", "projector"]
    assert all(torch.equal(made.state_dict()[name], before[name]) for name in ("0.0.weight", "0.0.bias"))
    assert not any(module.training for module in made.modules())
    new = [value for name, value in made.state_dict().items() if "projector" in name or name.startswith("3.")]
    assert len(new) == 3 * 6 + 2
    assert not any(value.any() for value in new)


def test_entries_are_the_weights() -> None:
    for edit in (LINEAR, MAPS):
        made = edits.replay(net(), [edit])
        names = [name for name, value in made.named_parameters() if value.dim() > 1 and not name.startswith("0.")]
        assert reused.entries(edit) == sum(made.get_parameter(name).numel() for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [4, 12]}, "cannot reuse a classifier of 4 classes in the place of '4', Linear"),
        ({"layer": "0"}, "in the place of '0', Conv2d"),
        ({"widths": [5, 0]}, r"a projector of widths \[5, 0\]"),
        ({"widths": [5, True]}, "a projector of widths"),
        ({"widths": [5]}, "a projector of widths"),
        ({"shape": [3, 12.0]}, "a reused classifier of shape"),
        (MAPS | {"size": [2]}, r"of widths \[5, 4, 8\], \[2\]"),
        (MAPS | {"after": "7"}, "'reuse' names a layer '7' that the model does not have"),
        (MAPS | {"after": "0"}, "behind '0', a Conv2d: expected an nn.Sequential or a module without weights"),
    ],
)
def test_bad_edits(change: Edit, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edits.replay(net(), [LINEAR | change])
