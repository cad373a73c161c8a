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


def test_the_first_pattern_in_a_name_counts() -> None:
    names = ["layer1.0", "layer1x0", "fc"]
    assert by_pattern({"x": 1, "^layer": 2, "": 3}, names, owner="X") == {"layer1.0": 2, "layer1x0": 1, "fc": 3}
    assert by_pattern({exactly("layer1.0"): 1, "": 2}, names, owner="X")["layer1x0"] == 2
    with pytest.raises(ValueError, match=r"X says nothing of 'fc', only of \^layer: add '\^fc\$', or at the end ''"):
        by_pattern({"^layer": 1}, names, owner="X")
    with pytest.raises(ValueError, match=r"X: pattern 'x' counts for no layer.*they are layer1\.0, layer1x0, fc"):
        by_pattern({"": 1, "x": 2}, names, owner="X")
