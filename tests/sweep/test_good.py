import numpy as np
import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials

from lightning_compress.sweep.good import good


@pytest.mark.parametrize("shape", ["cloud", "sphere", "grid", "equal"])
@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("trials", [12, 150])
def test_good_trials_are_the_ones_tpe_takes(shape: str, objectives: int, trials: int) -> None:
    losses = np.random.default_rng(0).normal(size=(trials, objectives))
    if shape == "sphere":
        losses = 1 - np.abs(losses) / np.linalg.norm(losses, axis=1, keepdims=True)
    elif shape == "grid":
        losses = losses.round()
    elif shape == "equal":
        losses = np.zeros_like(losses)
    study = optuna.create_study(directions=["minimize"] * objectives)
    study.add_trials([optuna.trial.create_trial(values=row.tolist()) for row in losses])
    count = -(-trials // 10)
    below, _ = _split_trials(study, study.trials, count)
    assert sorted(good(losses, count).tolist()) == [trial.number for trial in below]
