import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.sweep import objective
from lightning_compress.sweep.foresight import Foresight
from lightning_compress.sweep.publish import AXIS, StudyRun, study_labels, summary
from lightning_compress.sweep.record import Point, StudyRecord
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.sweep.study import Trial
from lightning_compress.tracking.content import Content
from lightning_compress.tracking.leg import Leg, read_leg, together
from tests.sweep.toy import DEFAULTS, result_of

VALUES = [(0.90, 900.0, 1.0), (0.95, 2000.0, 1.5), (0.80, 2500.0, 2.0), (0.85, 500.0, 0.5)]  # the third is beaten


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_", "NETRC"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


def after(spec: StudySpec, done: int, folder: Path) -> StudyRecord:
    """The record of a study with so many trials done, their files in the folder."""
    points = []
    for number, values in enumerate(VALUES[:done]):
        place = folder / "runs" / f"trial-{number}"
        place.mkdir(parents=True, exist_ok=True)
        result = result_of({**DEFAULTS, "bits": 8}, place.name)
        result.cost |= {"latency_ms": 2.0, "latency_ratio": values[2]}
        result.save(place)
        for name in result.files.values():
            (place / name).write_bytes(bytes([number]) * 100)
        points.append(Point("trial", f"trial {number}", place.name, {"bits": 8}, result, values))
    directions = list(spec.objectives.values())
    every = [point.values for point in points]
    front = tuple(points[index] for index in objective.front(every, directions))
    volume = objective.hypervolume([point.values for point in front], directions, among=every)
    trials = (*(Trial(number, {}, "done") for number in range(done)), Trial(99, {}, "failed"))
    return StudyRecord(
        spec, "now", tuple(points), front, (), None, trials, {}, volume, 1.5 * done, Foresight((), (), None)
    )


def legs(folder: Path) -> list[Leg]:
    """The logs of the folder in order, when all that was finished is on disk."""
    for _ in range(100):
        found = [read_leg(path) for path in folder.glob("wandb/offline-run-*/run-*.wandb")]
        if all(leg is not None and any(record.HasField("exit") for record in leg.records) for leg in found):
            break
        time.sleep(0.05)
    return sorted((leg for leg in found if leg is not None), key=lambda leg: leg.started)


def logged(folder: Path) -> Content:
    return together(legs(folder))


def column(content: Content, key: str) -> list[Any]:
    return [row[key] for row in content.rows if key in row]


def test_a_study_that_is_stopped_twice_is_one_run_with_a_point_for_each_step(spec: StudySpec, tmp_path: Path) -> None:
    def study() -> StudyRun:
        return StudyRun(study_labels(spec, "abcd", "p"), spec, tmp_path, "offline")

    with study() as run:
        run.refresh(after(spec, 1, tmp_path))
        run.refresh(after(spec, 1, tmp_path))
        run.refresh(after(spec, 2, tmp_path))
    with study() as run:
        run.refresh(after(spec, 2, tmp_path))
    with study() as run:
        run.refresh(after(spec, 3, tmp_path))
        run.finish(after(spec, 4, tmp_path))
    with study() as run:
        run.finish(after(spec, 4, tmp_path))
    assert {leg.run for leg in legs(tmp_path)} == {"abcd-study"}
    assert len(legs(tmp_path)) == 2, "nothing is opened where there is nothing to log"
    content = logged(tmp_path)
    assert [row[AXIS] for row in content.rows if "hypervolume" in row] == [1, 2, 3, 4]
    assert column(content, "hypervolume") == [after(spec, done, tmp_path).hypervolume.value for done in (1, 2, 3, 4)]
    assert column(content, "front/points") == [1, 2, 2, 3]
    assert column(content, "trials/failed") == [1, 1, 1, 1]
    tables = [path for path in content.files if path.startswith("media/table/pareto")]
    assert len(tables) == 4, "at 1, 2 and 4 trials, and at the end; the front did not move with the third trial"
    names = {artifact.name for artifact in content.artifacts}
    assert {name for name in names if not name.startswith("run-")} == {"tiny-trial-0", "tiny-trial-1", "tiny-trial-3"}
    wanted = summary(after(spec, 4, tmp_path))
    assert {key: content.summary[key] for key in wanted} == wanted


def test_models_carry_files_and_the_study_is_published_again_after_more_runs(spec: StudySpec, tmp_path: Path) -> None:
    for done in (2, 4):
        with StudyRun(study_labels(spec, "abcd", "p"), spec, tmp_path, "offline") as run:
            run.finish(after(spec, done, tmp_path))
    models = [artifact for artifact in logged(tmp_path).artifacts if artifact.name == "tiny-trial-1"]
    assert len(models) == 2
    assert {path: size for path, (size, _) in models[0].entries.items() if path != "result.json"} == {
        "model.lcz": 100,
        "model.onnx": 100,
    }
    assert "result.json" in models[0].entries


def test_labels_name_the_study(spec: StudySpec) -> None:
    labels = study_labels(spec, "abcd", "p")
    assert (labels.id, labels.project, labels.group, labels.job_type) == ("abcd-study", "p", "tiny", "study")
    assert study_labels(replace(spec, name="other"), "abce", "p").id != labels.id


def test_switched_off_it_logs_nothing(spec: StudySpec, tmp_path: Path) -> None:
    with StudyRun(study_labels(spec, "abcd", "p"), spec, tmp_path, "disabled") as run:
        run.refresh(after(spec, 1, tmp_path))
        run.finish(after(spec, 2, tmp_path))
    assert not (tmp_path / "wandb").exists()
