"""Studies held side by side, on one scale for all."""

from collections.abc import Sequence

from lightning_compress.compare.differences import Row, flat, number
from lightning_compress.compare.subject import Study
from lightning_compress.sweep import objective


def table(studies: Sequence[Study]) -> list[Row]:
    """What came of each study; fronts are held against each other where the objectives are the same.

    The hypervolume's scale is that of all their points, so that one is larger than another.
    """
    found = [study.record for study in studies]
    return [
        ("objectives", [", ".join(f"{name} {way}" for name, way in one.spec.objectives.items()) for one in found]),
        *((f"trials {state}", [str(one.count(state)) for one in found]) for state in ("done", "stopped", "failed")),
        ("points on the front", [str(len(one.front)) for one in found]),
        *_against_each_other(studies),
        *((f"{name}, {way} of the front", cells) for name, way, cells in _best(studies)),
        ("training time", [f"{one.seconds / 60:.1f} minutes" for one in found]),
        ("begun", [one.created for one in found]),
        ("commit", [str(one.points[0].result.provenance.get("commit") or "none")[:12] for one in found]),
        ("device", [str(one.points[0].result.cost.get("device", "")) for one in found]),
    ]


def comparable(studies: Sequence[Study]) -> bool:
    """Whether the studies have the same objectives."""
    return all(study.record.spec.objectives == studies[0].record.spec.objectives for study in studies)


def settings(study: Study) -> dict[str, object]:
    """What a study was asked to do, flat."""
    return flat(study.record.spec.asdict())


def _against_each_other(studies: Sequence[Study]) -> list[Row]:
    if not comparable(studies) or len(studies) < 2:
        return []
    directions = list(studies[0].record.spec.objectives.values())
    every = [point.values for study in studies for point in (*study.record.points, *study.record.baselines)]
    fronts = [[point.values for point in study.record.front] for study in studies]
    volumes = [objective.hypervolume(front, directions, among=every).value for front in fronts]
    beaten = []
    for front in fronts:
        others = [values for other in fronts if other is not front for values in other]
        lost = sum(any(objective.dominates(other, values, directions) for other in others) for values in front)
        beaten.append(f"{lost} of {len(front)}")
    return [
        ("hypervolume, one scale", [f"{volume:.4f}" for volume in volumes]),
        ("front points that another front beats", beaten),
    ]


def _best(studies: Sequence[Study]) -> list[tuple[str, str, list[str]]]:
    """The best of each objective that a study has, among its front."""
    rows = []
    ways = {name: way for study in studies for name, way in study.record.spec.objectives.items()}
    for name, way in ways.items():
        cells = []
        for study in studies:
            place = list(study.record.spec.objectives).index(name) if name in study.record.spec.objectives else None
            values = [] if place is None else [point.values[place] for point in study.record.front]
            cells.append(number(name, (max if way == "max" else min)(values)) if values else "")
        rows.append((name, "largest" if way == "max" else "smallest", cells))
    return rows
