import pytest
from torch import nn
from torch.nn.utils import parametrize

from lightning_compress.core.select import by_pattern, exactly, layers


def net() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 4, 3),
            "block": nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)),
            "head": nn.Linear(4, 2),
        }
    )


def test_all_weighted_layers_in_order_of_definition() -> None:
    assert list(layers(net(), owner="X")) == ["stem", "block.0", "block.3", "head"]


def test_select_and_exclude_are_searched_regular_expressions() -> None:
    assert list(layers(net(), owner="X", select="block")) == ["block.0", "block.3"]
    assert list(layers(net(), owner="X", select=r"\d$", exclude=["3"])) == ["block.0"]
    assert list(layers(net(), owner="X", exclude=["^block", "head"])) == ["stem"]


def test_first_and_last() -> None:
    assert list(layers(net(), owner="X", exclude=["<first>", "<last>"])) == ["block.0", "block.3"]


def test_kinds() -> None:
    assert list(layers(net(), owner="X", kinds=(nn.BatchNorm2d,))) == ["block.1"]


def test_a_parametrized_layer_is_still_found() -> None:
    model = net()
    parametrize.register_parametrization(model.get_submodule("head"), "weight", nn.Identity())
    assert "head" in layers(model, owner="X")


def test_nothing_left_is_an_error_that_lists_the_layers() -> None:
    with pytest.raises(ValueError, match=r"Prune matched no layer: select='conv9'.*stem, block.0, block.3, head \(4"):
        layers(net(), owner="Prune", select="conv9")


def test_a_useless_exclude_is_an_error_that_lists_the_layers() -> None:
    with pytest.raises(ValueError, match=r"Prune: exclude='fc' matches no layer; the model has stem, block.0"):
        layers(net(), owner="Prune", exclude=["fc"])


def test_a_model_without_layers() -> None:
    with pytest.raises(ValueError, match=r"X matched no layer.*\(0 names\)"):
        layers(nn.ReLU(), owner="X")


def test_each_name_is_spoken_of_once() -> None:
    names = ["layer1.0", "layer1x0", "fc"]
    assert by_pattern({"^layer": 1, "fc": 2}, names, owner="Prune") == {"layer1.0": 1, "layer1x0": 1, "fc": 2}
    assert by_pattern({exactly("layer1.0"): 1, "x0": 2, "fc": 3}, names, owner="Prune")["layer1.0"] == 1
    with pytest.raises(ValueError, match=r"'fc' needs one value, but none of \['\^layer'\] matches it"):
        by_pattern({"^layer": 1}, names, owner="Prune")
    with pytest.raises(ValueError, match=r"'layer1\.0' needs one value, but both 'layer' and '0' match it"):
        by_pattern({"layer": 1, "0": 2, "fc": 3}, names, owner="Prune")
    with pytest.raises(ValueError, match=r"Prune: 'conv' matches nothing; there are layer1\.0, layer1x0, fc"):
        by_pattern({"": 1, "conv": 2}, names, owner="Prune")
