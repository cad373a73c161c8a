import pytest
from torch import nn
from torch.nn.utils import parametrize

from lightning_compress.core.select import by_pattern, layers


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


def test_what_patterns_say_of_names() -> None:
    assert by_pattern({"1$": 1, "": 2}, ["conv1", "fc"], owner="X") == {"conv1": 1, "fc": 2}
    with pytest.raises(ValueError, match=r"X: pattern 'conv9' is in no layer's name; they are conv1, fc \(2 names\)"):
        by_pattern({"": 1, "conv9": 2}, ["conv1", "fc"], owner="X")
    with pytest.raises(ValueError, match="X: none of the patterns conv is in 'fc'; add one, or exclude it"):
        by_pattern({"conv": 1}, ["conv1", "fc"], owner="X")
