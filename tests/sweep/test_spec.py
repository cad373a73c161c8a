from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.sweep.spec import StudySpec, find, load

GOOD = "objectives: {val/accuracy: max}\nspace: {model.width: [0.5, 1.0]}\ntrials: 3\n"


def _file(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_a_study_named_after_it(tmp_path: Path) -> None:
    spec = load(_file(tmp_path, GOOD + "base: [a=1]\nenqueue: [{model.width: 0.5}]\n"))
    assert spec.name == "mine"
    assert spec.report == "reports/mine"
    assert spec.base == ["a=1"]
    assert spec.space == {"model.width": [0.5, 1.0]}
    assert spec.quality == "val/accuracy"
    assert StudySpec(**spec.asdict()) == spec


def test_exponents_are_numbers(tmp_path: Path) -> None:
    spec = load(_file(tmp_path, GOOD.replace("[0.5, 1.0]", "{low: 1e-4, high: 1E+2, log: true}")))
    assert spec.space["model.width"] == {"low": 1e-4, "high": 100.0, "log": True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "trails: 4\n", "'trails' is not in a study: did you mean 'trials'"),
        (GOOD + "trials: 4\n", "key 'trials' is written twice"),
        (GOOD.replace("trials: 3", "trials: 0"), "trials must be a count from 1 up; got 0"),
        (GOOD.replace("trials: 3", "trials: true"), "trials must be a count"),
        (GOOD.replace(": max", ": big"), "objectives must be result names with max or min"),
        (GOOD.replace("val/", "test/"), "would select on the test split; write val/accuracy"),
        (GOOD.replace("trials: 3\n", ""), "a study needs trials"),
        (GOOD + "sampler: tpee\n", "sampler must be one of tpe, tpe_group, nsga2, nsga3, gp, random; got 'tpee'"),
        (GOOD + "base: epochs=3\n", "base must be a list of overrides like model.width=0.5; got 'epochs=3'"),
        (GOOD + "base: [epochs]\n", "base must be a list of overrides"),
        (GOOD + "baselines: {half: [a=1]}\nreference: hal\n", "'hal' is not in the baselines: did you mean 'half'"),
        (GOOD + "baselines: {half: [a=1]}\n", "reference is missing"),
        (GOOD + "confirm_seeds: [1, 1]\n", "confirm_seeds must be a list of different whole numbers"),
        (GOOD + "name: ../up\n", "name must be a file name"),
        (GOOD + "expected_seconds: -1\n", "expected_seconds must be a number above 0"),
        ("[1, 2]", "must hold keys like name, space, objectives; got list"),
        ("a: [", "is not readable YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(_file(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_found_by_path_or_in_the_first_folder_that_has_it(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "sweeps").mkdir(parents=True)
    (tmp_path / "b/sweeps/digits.yaml").write_text("b")
    folders = [tmp_path / "none", tmp_path / "a", tmp_path / "b"]
    assert find("digits", folders) == tmp_path / "b/sweeps/digits.yaml"
    (tmp_path / "a/sweeps/digits.yaml").write_text("a")
    assert find("digits", folders) == tmp_path / "a/sweeps/digits.yaml"
    assert find(str(tmp_path / "b/sweeps/digits.yaml"), []) == tmp_path / "b/sweeps/digits.yaml"
    with pytest.raises(FileNotFoundError, match=r"'digit' is not in .* did you mean 'digits'"):
        find("digit", folders)
    with pytest.raises(FileNotFoundError, match="no study file"):
        find("nowhere.yaml", folders)


@pytest.mark.parametrize("change", [{"trials": 9}, {"confirm_seeds": [5]}, {"test": False}, {"report": "x"}])
def test_a_study_may_grow(spec: StudySpec, change: dict[str, Any]) -> None:
    replace(spec, **change).continues(spec, trials_exist=True)


@pytest.mark.parametrize(
    ("change", "free_before_trials"),
    [({"space": {"bits": [2, 4]}}, True), ({"sampler": "random"}, True), ({"base": ["a=1"]}, False)],
)
def test_what_the_runs_rest_on_may_not_change(
    spec: StudySpec, change: dict[str, Any], free_before_trials: bool
) -> None:
    changed = replace(spec, **change)
    with pytest.raises(ValueError, match=f"another {next(iter(change))}.*--fresh"):
        changed.continues(spec, trials_exist=True)
    if free_before_trials:
        changed.continues(spec, trials_exist=False)
    else:
        with pytest.raises(ValueError, match="--fresh"):
            changed.continues(spec, trials_exist=False)
