"""The table of a paper, written down: what is published, and the runs of ours that stand beside it. One YAML file."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from lightning_compress.core import strict_yaml
from lightning_compress.core.strict_yaml import unknown
from lightning_compress.tables.forms import hold, made

FOLDER = Path("reports/tables")
_PACKAGE = Path(__file__).parents[1]


@final
@dataclass(frozen=True)
class Published:
    """A published value in the unit of its column; `n` is its number of runs.

    At most one of `at_most`, `at_least` and `within` is this cell's own acceptance, in place of the rule.
    """

    value: float
    source: str
    confidence: str
    sd: float | None = None
    n: int | None = None
    at_most: float | None = None
    at_least: float | None = None
    within: float | None = None


@final
@dataclass(frozen=True)
class Column:
    """A quantity: `offset + scale * metric`, where `metric` is a name of a result's numbers, or `a / b` of two.

    >>> error = Column("error", "test error, %", "test/accuracy", scale=-100, offset=100)
    >>> round(error.value({"test/accuracy": 0.98}), 6)
    2.0
    """

    name: str
    title: str
    metric: str
    scale: float = 1.0
    offset: float = 0.0
    decimals: int = 2
    better: str = "higher"

    def value(self, numbers: Mapping[str, float]) -> float:
        """The quantity, given a run's numbers.

        Raises:
            ValueError: a number is not there, or the lower one is 0.
        """
        parts = self.metric.split(" / ")
        for part in parts:
            if part not in numbers:
                raise ValueError(f"column {self.name}: {unknown(part, sorted(numbers), 'the numbers of the run')}")
        if len(parts) == 2 and numbers[parts[1]] == 0:
            raise ValueError(f"column {self.name}: {parts[1]} is 0")
        ratio = numbers[parts[0]] / (numbers[parts[1]] if len(parts) == 2 else 1.0)
        return self.offset + self.scale * ratio


@final
@dataclass(frozen=True)
class Row:
    """A line of the table: runs of an experiment, other columns of another row's runs, or cited values only.

    Its runs begin when the first run of the row `after`, whose files they read, has ended on the same machine.
    """

    name: str
    title: str
    section: str
    experiment: str | None
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    needs: str
    baseline: str | None
    runs_of: str | None
    cause: str | None
    published: Mapping[str, Published]
    after: str | None = None


@final
@dataclass(frozen=True)
class Claim:
    """A published ordering: in `column` the row `better` beats the row `worse` by `least`, in the column's unit."""

    column: str
    better: str
    worse: str
    least: float
    source: str


@final
@dataclass(frozen=True)
class Paper:
    """Where the published values stand."""

    authors: str
    title: str
    venue: str
    url: str
    tables: str


@final
@dataclass(frozen=True)
class Spec:
    """The table of one paper. `selection` says which epoch of a run counts; `overrides` go into each row's runs."""

    name: str
    title: str
    paper: Paper
    about: str
    selection: str
    departures: tuple[str, ...]
    overrides: tuple[str, ...]
    columns: Mapping[str, Column]
    rows: Mapping[str, Row]
    claims: tuple[Claim, ...]


def find(name: str, folder: Path = FOLDER) -> Path:
    """The file of the table called `name`: a path, or `<name>.yaml` in `folder`.

    Raises:
        FileNotFoundError: names the nearest table there is.
    """
    path = Path(name) if name.endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        known = [path.stem for path in sorted(folder.glob("*.yaml"))]
        raise FileNotFoundError(f"table {unknown(name, known, str(folder))}, or the path of a .yaml file")
    return path


def every(folder: Path = FOLDER) -> list[Spec]:
    """All tables in a folder, by name."""
    return [load(path) for path in sorted(folder.glob("*.yaml"))]


def load(path: Path, folders: Sequence[Path] = ()) -> Spec:
    """The table in a YAML file; `folders` are searched for `experiments/` before the usual places.

    Raises:
        ValueError: an unknown key, row or experiment (the nearest right one is named), a wrong value, a key twice.
    """
    try:
        return _spec(path.stem, strict_yaml.load(path), folders)
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path} ')}") from error


def _spec(name: str, data: Any, folders: Sequence[Path]) -> Spec:
    hold("the table", data, ["title", "paper", "columns", "rows"], [each.name for each in fields(Spec)][1:])
    optional = {"about": "", "selection": "last", "departures": [], "overrides": [], "claims": []}
    data = {**optional, **data}
    columns = {key: made(Column, f"column {key}", {"name": key}, inner) for key, inner in data["columns"].items()}
    rows = {key: _row(key, inner, columns) for key, inner in data["rows"].items()}
    claims = [
        made(Claim, f"claim {index}", {"least": 0.0}, inner) for index, inner in enumerate(data["claims"], start=1)
    ]
    spec = Spec(
        name=name,
        title=data["title"],
        paper=made(Paper, "paper", {}, data["paper"]),
        about=data["about"],
        selection=data["selection"],
        departures=tuple(data["departures"]),
        overrides=tuple(data["overrides"]),
        columns=columns,
        rows=rows,
        claims=tuple(claims),
    )
    _check_names(spec, folders)
    return spec


def _row(name: str, data: Any, columns: Mapping[str, Column]) -> Row:
    where = f"row {name}"
    if not re.fullmatch(r"[a-z0-9_.]+", str(name)):
        raise ValueError(f"{where}: a row's name has a-z, 0-9, _ and . only")
    given: dict[str, Any] = {"section": "", "overrides": [], "seeds": [], "needs": "cpu", "published": {}}
    given |= dict.fromkeys(("experiment", "baseline", "runs_of", "cause", "after"))
    row: Row = made(Row, where, {"name": name, **given}, data)
    published = {}
    for column, cell in row.published.items():
        if column not in columns:
            raise ValueError(f"{where}: published {unknown(column, columns, 'the columns')}")
        published[column] = made(Published, f"{where}, {column}", {}, cell)
    whole = {each.name: getattr(row, each.name) for each in fields(Row)}
    row = Row(**{**whole, "overrides": tuple(row.overrides), "seeds": tuple(row.seeds), "published": published})
    _check_row(where, row)
    return row


def _check_row(where: str, row: Row) -> None:
    if row.experiment is not None and row.runs_of is not None:
        raise ValueError(f"{where}: write experiment or runs_of, not both")
    if row.experiment is not None and not row.seeds:
        raise ValueError(f"{where}: seeds is missing: write a list such as [0, 1, 2]")
    if row.experiment is None and (row.seeds or row.overrides):
        raise ValueError(f"{where}: seeds and overrides go with an experiment; there is none")
    if row.experiment is None and row.runs_of is None and not row.published:
        raise ValueError(f"{where}: a row without experiment or runs_of is cited: write what is published")
    for column, cell in row.published.items():
        own = [name for name in ("at_most", "at_least", "within") if getattr(cell, name) is not None]
        if len(own) > 1:
            raise ValueError(f"{where}, {column}: write one of {' and '.join(own)}, not both")


def _check_names(spec: Spec, folders: Sequence[Path]) -> None:
    known = _experiments(folders)
    for row in spec.rows.values():
        where = f"row {row.name}"
        _check_known(f"{where}: baseline", row.baseline, spec.rows, "the rows")
        for key in ("runs_of", "after"):
            other = getattr(row, key)
            _check_known(f"{where}: {key}", other, spec.rows, "the rows")
            if other is not None and spec.rows[other].experiment is None:
                raise ValueError(f"{where}: {key} {other!r} has no experiment of its own; name one that has")
        _check_known(f"{where}: experiment", row.experiment, known, "the experiments")
    for index, claim in enumerate(spec.claims, start=1):
        _check_known(f"claim {index}: column", claim.column, spec.columns, "the columns")
        _check_known(f"claim {index}: better", claim.better, spec.rows, "the rows")
        _check_known(f"claim {index}: worse", claim.worse, spec.rows, "the rows")


def _check_known(key: str, name: str | None, known: Collection[str], where: str) -> None:
    if name is not None and name not in known:
        raise ValueError(f"{key} {unknown(name, known, where)}")


def _experiments(folders: Sequence[Path]) -> list[str]:
    roots = [place / "experiments" for place in (*folders, Path.cwd(), _PACKAGE.parent, _PACKAGE / "shipped")]
    found = {str(file.relative_to(root).with_suffix("")) for root in roots for file in root.rglob("*.yaml")}
    return sorted(found)
