import json
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from lightning_compress.sweep import ledger
from lightning_compress.sweep.foresight import Foresight, foresight
from lightning_compress.sweep.rungs import Prediction
from lightning_compress.sweep.spec import StudySpec
from tests.sweep.toy import Bench, run_study


def test_rungs_are_compared_with_the_end_over_trials_that_reached_it(spec: StudySpec, tmp_path: Path) -> None:
    space = {**spec.space, "model.width": [0.5, 0.75, 1.0]}
    racing = replace(
        spec, base=["epochs=9"], space=space, fidelity={"grace": 1}, trials=20, confirm_seeds=[], test=False
    )
    found, _ = run_study(racing, Bench(), tmp_path / "study")
    seen = found.foresight
    full = {trial.number: trial.values or () for trial in found.trials if trial.state == "done"}
    early = {
        e["trial"]: e["values"] for e in ledger.read(tmp_path / "study") if e["event"] == "rung" and e["epoch"] == 1
    }
    first = seen.rungs[0]
    assert (first.level, first.trials) == (1, len(full))
    for column, value in enumerate(first.values):
        pairs = [(early[number][column], values[column]) for number, values in full.items()]
        assert value == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)


def test_predicted_bytes_are_compared_with_those_packed(spec: StudySpec, tmp_path: Path) -> None:
    found, _ = run_study(replace(spec, confirm_seeds=[], test=False), Bench(), tmp_path / "study")
    for point, factor in zip(found.points[:3], (1.0, 1.1, 0.98), strict=True):
        predicted = {"packed_bytes": point.result.cost["packed_bytes"] * factor}
        (tmp_path / f"study/runs/{point.run}/predicted.json").write_text(json.dumps(predicted))
    seen = foresight(spec, tmp_path / "study", found.trials)
    assert seen.bytes_missed == pytest.approx((0.02, 0.1))
    assert seen.warnings == ["predicted bytes were up to 10% off those that were packed"]


def test_a_rung_that_does_not_predict_is_warned_about() -> None:
    (warning,) = Foresight(("val/accuracy",), (Prediction(3, 12, (0.1,), 0.9),), (0.0, 0.0)).warnings
    assert warning.startswith(
        "after 3 epochs trials rank otherwise than at the end (rank correlation val/accuracy 0.10"
    )
