"""A finished study as data: its points, its front and what is said about them, read from its folder."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

from lightning_compress.run import traffic
from lightning_compress.run.result import FILE as FILE_OF_RUN
from lightning_compress.run.result import Result
from lightning_compress.sweep import elsewhere, ledger, objective, runs, space
from lightning_compress.sweep.elsewhere import Elsewhere
from lightning_compress.sweep.foresight import Foresight, foresight
from lightning_compress.sweep.objective import Hypervolume
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.sweep.study import Study, Trial, importances

FILE = "study.json"


@final
@dataclass(frozen=True)
class Point:
    """One trained recipe: `confirmed` holds its quality on fresh seeds, `test` what the test split said.

    `epochs` says after how many a trial was stopped, None for one trained in full; what breaks a constraint is not
    `feasible`; `elsewhere` holds latencies on other devices.
    """

    kind: Literal["teacher", "baseline", "trial"]
    name: str
    run: str
    params: dict[str, Any]
    result: Result
    values: tuple[float, ...]
    confirmed: tuple[float, ...] = ()
    test: dict[str, float] = field(default_factory=dict)
    epochs: int | None = None
    feasible: bool = True
    elsewhere: tuple[Elsewhere, ...] = ()


@final
@dataclass(frozen=True)
class StudyRecord:
    """All that a report says: points in order of trial, `front` by quality, best first.

    The front is made of trials trained in full that break no constraint; those stopped early are among the points.
    """

    spec: StudySpec
    created: str
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    baselines: tuple[Point, ...]
    teacher: Point | None
    trials: tuple[Trial, ...]
    importances: dict[str, float]
    hypervolume: Hypervolume
    seconds: float
    foresight: Foresight

    @property
    def reference(self) -> Point | None:
        """The dense baseline that sizes and latencies are compared with."""
        return next((point for point in self.baselines if point.name == self.spec.reference), None)

    def count(self, state: str) -> int:
        """Number of trials that ended as `state`."""
        return sum(trial.state == state for trial in self.trials)

    def beaten_by(self, point: Point) -> list[str]:
        """Names of the dense baselines that are nowhere worse than `point` and somewhere better."""
        directions = list(self.spec.objectives.values())
        return [base.name for base in self.baselines if objective.dominates(base.values, point.values, directions)]


def read_spec(folder: Path) -> tuple[StudySpec, str, str]:
    """The study kept in `folder`, its identity and the time it was begun.

    Raises:
        ValueError: the folder holds no study of ours.
    """
    try:
        data = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return StudySpec(**data["spec"]), data["identity"], data["created"]
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no study: there is no {FILE} in it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / FILE} is damaged ({error}): put back a copy, or write --fresh to begin the study anew"
        ) from error


def open_study(folder: Path, spec: StudySpec) -> Study:
    """The sampler's memory of the study in `folder`; for the one process that drives it."""
    _, identity, _ = read_spec(folder)
    return Study(
        folder,
        # One database may hold two studies of one name.
        name=spec.name if spec.storage is None else f"{spec.name}-{identity}",
        objectives=spec.objectives,
        sampler=spec.sampler,
        seed=spec.sampler_seed,
        storage=spec.storage,
        constraints=spec.limits,
    )


def trials(folder: Path) -> tuple[Trial, ...]:
    """The trials drawn so far, without draws that were known already; read from the ledger, while others write it."""
    found: dict[int, Trial] = {}
    for event in ledger.read(folder):
        if event["event"] == "ask":
            found[event["trial"]] = Trial(event["trial"], event["params"], "running")
        elif event["event"] == "rung":
            found[event["trial"]] = replace(found[event["trial"]], epochs=event["epoch"])
        elif event["event"] == "end" and event.get("repeats") is not None:
            del found[event["trial"]]
        elif event["event"] == "end":
            found[event["trial"]] = _ended(found[event["trial"]], event)
    return tuple(found.values())


def _ended(trial: Trial, event: ledger.Event) -> Trial:
    values = None if event["values"] is None else tuple(event["values"])
    epochs = trial.epochs if event["state"] == "stopped" else None
    return replace(
        trial,
        state=event["state"],
        values=values,
        reason=event["reason"],
        epochs=epochs,
        violations=event["violations"],
    )


def collect(folder: Path) -> StudyRecord:
    """The study in `folder` with everything that is finished so far.

    Raises:
        ValueError: the folder holds no study, or no trial of it has finished.
    """
    spec, _, created = read_spec(folder)
    drawn = trials(folder)
    if not drawn:
        raise ValueError(f"no trial of the study in {folder} has begun")
    points = [point for trial in drawn if trial.values is not None and (point := _point(folder, spec, trial))]
    full = [point for point in points if point.epochs is None and point.feasible]
    if not full:
        reasons = [trial.reason for trial in drawn if trial.state == "failed"]
        last = f": {len(reasons)} failed, the last one with {reasons[-1]}" if reasons else ""
        broken = ", those that did break a constraint" if any(point.epochs is None for point in points) else ""
        raise ValueError(f"no trial of the study in {folder} has finished{broken}{last}")
    baselines = [
        point
        for index, name in enumerate(spec.baselines)
        if (point := _dense(folder, spec, "baseline", name, f"baseline-{index}"))
    ]
    directions = list(spec.objectives.values())
    front = [full[index] for index in objective.front([point.values for point in full], directions)]
    front.sort(key=lambda point: point.values[0], reverse=directions[0] == "max")
    return StudyRecord(
        spec=spec,
        created=created,
        points=tuple(points),
        front=tuple(front),
        baselines=tuple(baselines),
        teacher=_dense(folder, spec, "teacher", "teacher", "teacher-0"),
        trials=drawn,
        importances=importances(drawn, space.parse(spec.space), spec.objectives),
        hypervolume=objective.hypervolume(
            [point.values for point in front], directions, among=[point.values for point in [*points, *baselines]]
        ),
        seconds=sum(Result.load(path.parent).wall_seconds for path in results(folder)),
        foresight=foresight(spec, folder, drawn),
    )


def pareto(folder: str | Path) -> list[Result]:
    """Results of the front of the study in `folder`, the best quality first.

    Raises:
        ValueError: the folder holds no study, or no trial of it has finished.
    """
    return [point.result for point in collect(Path(folder)).front]


def results(folder: Path) -> list[Path]:
    """The result files of a study's runs."""
    return sorted((folder / "runs").glob("*/result.json"))


def row(record: StudyRecord, point: Point) -> dict[str, Any]:
    """One line of a table: numbers by column name, None where there is none.

    `smaller` and `faster` compare with the dense reference, in times; `faster` with latencies of one call.
    """
    cost, reference, spec = point.result.cost, record.reference, record.spec
    mean, deviation = spread(point.confirmed)
    dense_bytes = reference.result.cost["packed_bytes"] if reference else cost["dense_bytes"]
    return {
        "name": point.name,
        "kind": point.kind,
        "epochs": point.epochs,
        **dict(zip(spec.objectives, point.values, strict=True)),
        "confirmed_mean": mean,
        "confirmed_sd": deviation,
        "confirmed_n": len(point.confirmed),
        **point.test,
        "packed_bytes": cost["packed_bytes"],
        "smaller": float(dense_bytes) / float(cost["packed_bytes"]),
        "latency_ms": cost["latency_ms"],
        "latency_ratio": cost["latency_ratio"],
        "faster": 1.0 / float(cost["latency_ratio"]),
        "sparsity": cost["sparsity"],
        "bits": bits(point.result.layers),
        "params": cost["params"],
        "nonzeros": cost["nonzeros"],
        "relative_bops": cost["relative_bops"],
        **{f"latency_ms on {one.label}": one.latency_ms for one in point.elsewhere},
        **{f"faster on {one.label}": 1.0 / one.latency_ratio for one in point.elsewhere},
        "beaten_by": ", ".join(record.beaten_by(point)) if point.kind == "trial" else "",
        **{f"param/{path}": value for path, value in point.params.items()},
    }


def spread(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation, None where there are too few values.

    >>> spread([0.5]), spread([])
    ((0.5, None), (None, None))
    """
    mean = statistics.fmean(values) if values else None
    return mean, statistics.stdev(values) if len(values) > 1 else None


def bits(layers: Sequence[dict[str, Any]]) -> str:
    """Weight and activation bits of a net in a few letters, the smallest to the largest where layers differ.

    >>> bits([{"weight_bits": 4, "activation_bits": 8}, {"weight_bits": 8, "activation_bits": 8}])
    'W4-8A8'
    """
    parts = []
    for letter, key in (("W", "weight_bits"), ("A", "activation_bits")):
        known = sorted({int(layer[key]) for layer in layers if layer.get(key) is not None})
        parts.append(letter + "-".join(str(number) for number in dict.fromkeys((known[0], known[-1]))) if known else "")
    return "".join(parts)


def _point(folder: Path, spec: StudySpec, trial: Trial) -> Point | None:
    name = f"trial-{trial.number}"
    place = folder / "runs" / name
    file = FILE_OF_RUN if trial.epochs is None else traffic.rung_file(trial.epochs)
    if trial.values is None or not (place / file).exists():
        return None
    return Point(
        kind="trial",
        name=f"trial {trial.number}",
        run=name,
        params=trial.params,
        result=Result.load(place, file),
        values=trial.values,
        confirmed=_confirmed(folder, spec, name),
        test=traffic.test_numbers(place),
        epochs=trial.epochs,
        feasible=trial.feasible,
        elsewhere=elsewhere.of_run(folder, name),
    )


def _dense(folder: Path, spec: StudySpec, kind: Literal["teacher", "baseline"], name: str, run: str) -> Point | None:
    result = runs.finished(folder / "runs" / run)
    if result is None:
        return None
    return Point(
        kind=kind,
        name=name,
        run=run,
        params={},
        result=result,
        values=objective.values(result, spec.objectives),
        confirmed=_confirmed(folder, spec, run),
        test=traffic.test_numbers(folder / "runs" / run),
        elsewhere=elsewhere.of_run(folder, run),
    )


def _confirmed(folder: Path, spec: StudySpec, label: str) -> tuple[float, ...]:
    found = [runs.finished(folder / "runs" / f"confirm-{label}-{seed}") for seed in spec.confirm_seeds]
    return tuple(float(result.get(spec.quality)) for result in found if result is not None)
