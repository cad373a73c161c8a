"""Which point of a study's front to deploy: the best one within limits."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from lightning_compress.sweep import record as records
from lightning_compress.sweep.progress import shown
from lightning_compress.sweep.record import Point, StudyRecord
from lightning_compress.sweep.spec import StudySpec

_UNITS: dict[str, dict[str, float]] = {
    "--max-bytes": {"": 1, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "--max-latency": {"": 1, "ms": 1, "s": 1e3, "x": 1},
    "--min-accuracy": {"": 1, "%": 0.01},
}
_EXAMPLES = {"--max-bytes": "20000 or 20kB", "--max-latency": "0.5ms or 0.5x", "--min-accuracy": "0.97 or 97%"}
_NEAREST = 3


@final
@dataclass(frozen=True)
class Limit:
    """A bound on the number in `column` of a study's table; `most` says that it is the highest one allowed."""

    text: str
    column: str
    bound: float
    most: bool = True

    def excess(self, numbers: Mapping[str, Any]) -> float:
        """How far a row of the table is beyond the bound, as a share of it; 0 within.

        >>> Limit("--max-bytes 10", "packed_bytes", 10.0).excess({"packed_bytes": 15})
        0.5
        """
        beyond = float(numbers[self.column]) - self.bound
        return max(0.0, beyond if self.most else -beyond) / self.bound


@final
@dataclass(frozen=True)
class Choice:
    """The point, its row of the study's table, and how many of the front were within the limits."""

    point: Point
    numbers: dict[str, Any]
    fitting: int


def limits(spec: StudySpec, asked: Mapping[str, str | None]) -> list[Limit]:
    """The limits in `asked`, texts by option.

    Bytes may have a unit; a latency is in milliseconds, or with an `x` in times the dense reference's; an accuracy is a
    share of the study's quality, or a percentage.

    Raises:
        ValueError: a text is no such number, or the study's quality is not one to be high.

    >>> spec = StudySpec(name="t", objectives={"val/accuracy": "max"}, space={"model.width": [0.5, 1.0]}, trials=4)
    >>> [(limit.column, limit.bound) for limit in limits(spec, {"--max-bytes": "20kB", "--max-latency": "0.5x"})]
    [('packed_bytes', 20000.0), ('latency_ratio', 0.5)]
    """
    return [_limit(spec, option, text) for option, text in asked.items() if text is not None]


def _limit(spec: StudySpec, option: str, text: str) -> Limit:
    number, unit = _number(option, text)
    if option == "--max-bytes":
        return Limit(f"{option} {text}", "packed_bytes", number)
    if option == "--max-latency":
        return Limit(f"{option} {text}", "latency_ratio" if unit == "x" else "latency_ms", number)
    if spec.objectives[spec.quality] != "max":
        raise ValueError(f"{option}: the quality of this study is {spec.quality}, which is to be low")
    if number > 1:
        raise ValueError(f"{option}: expected a share up to 1, as {_EXAMPLES[option]}, got {text!r}")
    return Limit(f"{option} {text}", spec.quality, number, most=False)


def _number(option: str, text: str) -> tuple[float, str]:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([A-Za-z%]*)", text.strip())
    known = {name.lower(): factor for name, factor in _UNITS[option].items()}
    if found is None or found[2].lower() not in known or float(found[1]) == 0:
        raise ValueError(f"{option}: expected a number above 0, as {_EXAMPLES[option]}, got {text!r}")
    return float(found[1]) * known[found[2].lower()], found[2].lower()


def pick(record: StudyRecord, within: Sequence[Limit]) -> Choice:
    """The front point of the best quality within all limits; of equal ones the smallest.

    Raises:
        ValueError: there is none; the message says which limit excludes all, and what comes nearest.
    """
    rows = [(point, records.row(record, point)) for point in record.front]
    fitting = [(point, row) for point, row in rows if not any(limit.excess(row) for limit in within)]
    if not fitting:
        raise ValueError(_refusal(record, rows, within))
    best = fitting[0][0].values[0]
    point, row = min((one for one in fitting if one[0].values[0] == best), key=lambda one: one[1]["packed_bytes"])
    return Choice(point, row, len(fitting))


def _refusal(record: StudyRecord, rows: Sequence[tuple[Point, dict[str, Any]]], within: Sequence[Limit]) -> str:
    alone = [limit for limit in within if all(limit.excess(row) for _, row in rows)]
    parts = []
    for limit in alone:
        point, row = min(rows, key=lambda one: limit.excess(one[1]))
        extreme = "least" if limit.most else "most"
        parts.append(f"{limit.text} alone excludes all (the {extreme} is {_told(limit, row)}, {point.name})")
    if not alone:
        parts.append(f"each of {', '.join(limit.text for limit in within)} can be met, but not together")

    def distance(one: tuple[Point, dict[str, Any]]) -> tuple[int, float]:
        gaps = [limit.excess(one[1]) for limit in within]
        return sum(gap > 0 for gap in gaps), sum(gaps)

    nearest = [
        f"{point.name} with {', '.join(_told(limit, row) for limit in within if limit.excess(row))}"
        for point, row in sorted(rows, key=distance)[:_NEAREST]
    ]
    return (
        f"none of the {len(rows)} front points of {record.spec.name} is within the limits: {'; '.join(parts)}. "
        f"Nearest misses: {'; '.join(nearest)}"
    )


def _told(limit: Limit, row: Mapping[str, Any]) -> str:
    return f"{limit.column} {shown(limit.column, row[limit.column])}"


def told(record: StudyRecord, choice: Choice) -> dict[str, str]:
    """The numbers of a choice in words, by what they are."""
    row, point = choice.numbers, choice.point
    dense = f"dense {record.reference.name}" if record.reference else "its own dense network"
    confirmed = {} if not point.confirmed else {"on fresh seeds": shown("", row["confirmed_mean"])}
    cost = point.result.cost
    size = shown("packed_bytes", row["packed_bytes"])
    beaten = {} if not row["beaten_by"] else {"mind": f"nowhere better than the dense net {row['beaten_by']}"}
    return {
        record.spec.quality: shown("", point.values[0]),
        **confirmed,
        **{name: shown("", value) for name, value in point.test.items()},
        "packed file": f"{size} ({row['smaller']:.1f} times smaller than {dense})",
        "latency": f"{row['latency_ms']:.3g} ms, {row['latency_ratio']:.3g} of {dense}'s, on "
        f"{cost.get('device')}, {cost.get('runtime')}, {cost.get('threads')} thread(s), batch {cost.get('batch_size')}",
        **beaten,
    }
