import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_compress.run.predict import predict
from lightning_compress.run.train import train

Configured = Callable[..., dict[str, Any]]
EXACT = ("params", "macs", "bops", "relative_bops", "dense_bytes")
RECIPES = {
    "dense": (),
    "weights": ("prune=gradual", "methods.prune.sparsity.last=0.8", "methods.prune.every=1"),
    "bits": ("quantize=affine", "methods.quantize.weight_bits=4"),
    "channels": ("prune=gradual", "methods.prune.pattern=channel", "methods.prune.every=1"),
    "all": ("prune=gradual", "methods.prune.every=1", "quantize=affine", "distill=kl"),
    "forms": (
        *("lowrank=spatial", "methods.lowrank.exclude=[conv2]"),
        *("slim=grouped", "methods.slim.select=conv2$", "quantize=affine"),
    ),
    "phases": (
        "prune=gradual",
        "methods.prune.pattern=channel",
        "methods.prune.every=1",
        "quantize=affine",
        "phases=[{methods:[prune],epochs:1},{methods:[quantize],epochs:1}]",
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_predicted_is_what_training_gives(recipe: str, configure: Configured, tmp_path: Path) -> None:
    teacher = ("model@teacher.model=small_conv", "teacher.epochs=1")
    config = configure(*RECIPES[recipe], *teacher)
    predicted, found = predict(config), train(config, tmp_path).cost
    assert {key: predicted[key] for key in EXACT} == {key: found[key] for key in EXACT}
    # Codes and masks of trained weights are more, or less, of a pattern than those of random ones.
    assert predicted["packed_bytes"] == pytest.approx(found["packed_bytes"], rel=0.2)
    assert predicted["nonzeros"] == pytest.approx(found["nonzeros"], rel=0.1)
    assert predicted.keys() == found.keys()


def test_it_is_quick_and_draws_nothing_of_the_run(configure: Configured) -> None:
    config = configure(*RECIPES["all"], "model@teacher.model=small_conv", "model.width=1")
    predict(config)
    state, started = torch.get_rng_state(), time.process_time()
    found = predict(config)
    assert time.process_time() - started < 0.5
    assert torch.equal(torch.get_rng_state(), state)
    assert predict(config) == found


def test_start_weights_count(configure: Configured, tmp_path: Path) -> None:
    pruned = ("prune=gradual", "methods.prune.sparsity=null", "methods.prune.threshold=1.0")
    train(configure("epochs=3", "optimizer.lr=0.05"), tmp_path)
    assert predict(configure(*pruned)) != predict(configure(*pruned, f"weights={tmp_path / 'weights.pt'}"))


def test_what_cannot_be_says_why(configure: Configured) -> None:
    with pytest.raises(ValueError, match="Prune matched no layer"):
        predict(configure("prune=gradual", "methods.prune.select=nothing"))
