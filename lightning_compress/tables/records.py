"""Records of the runs behind a table: one small file a seed, kept in the repository, from which pages are rendered."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

import yaml  # type: ignore[import-untyped]

from lightning_compress.core import strict_yaml
from lightning_compress.core.files import write_json
from lightning_compress.run.result import Result
from lightning_compress.tables.schema import Row, Spec

FOLDER = Path("reports/records")
#: Where files were on a machine, which says nothing about a number.
_WHEREABOUTS = {
    "data": ("root", "cache_dir"),
    "teacher": ("weights", "outputs", "folder"),
    "wandb": ("folder",),
}
#: Keys of a configuration that do not change what is trained.
_FREE = ("measure", "wandb", "name", "seed")
_CONF = Path(__file__).parents[1] / "conf"


@final
@dataclass(frozen=True)
class Record:
    """What is kept of a run: see `run/result.py` for its fields. A failed seed is one too, with an `error`."""

    row: str
    seed: int
    status: str
    name: str
    metrics: Mapping[str, float]
    cost: Mapping[str, Any]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    wall_seconds: float
    train_flops: float = 0.0
    error: str | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers by flat name, as those of a `Result`."""
        return Result(self.name, metrics=dict(self.metrics), cost=dict(self.cost)).numbers


def place(root: Path, spec_name: str, row: str, seed: int) -> Path:
    """The file of one record.

    >>> place(Path("reports/records"), "han2015", "lenet_5", 0).as_posix()
    'reports/records/han2015/lenet_5/seed0.json'
    """
    return root / spec_name / row / f"seed{seed}.json"


def read(root: Path, spec: Spec) -> dict[str, dict[int, Record]]:
    """The records there are by row and seed; a row with `runs_of` has those of the other row.

    Raises:
        ValueError: a file is damaged, or is not the record of the row and seed that its place says.
    """
    own = {
        name: {record.seed: record for record in sorted(_of_row(root / spec.name / name), key=lambda each: each.seed)}
        for name, row in spec.rows.items()
        if row.experiment is not None
    }
    return {name: own.get(row.runs_of or name, {}) for name, row in spec.rows.items()}


def write(root: Path, spec_name: str, row: str, result: Result) -> Path:
    """Keep the record of a finished run.

    Raises:
        ValueError: the run did not finish, its code was not committed, or a number is NaN or infinite.
    """
    if result.status != "done":
        raise ValueError(
            f"the run of {row}, seed {result.seed}, is {result.status!r}, not done: record it as a failure"
        )
    reason = uncommitted(result.provenance)
    if reason is not None:
        raise ValueError(f"no record of {spec_name}, row {row}, seed {result.seed}: {reason}")
    kept = {each.name: getattr(result, each.name) for each in fields(Record) if each.name != "row"}
    return _write(root, spec_name, Record(row=row, **kept))


def write_failure(
    root: Path, spec_name: str, row: str, seed: int, config: Mapping[str, Any], error: Exception | str
) -> Path:
    """Keep that a seed failed, and why, so that it is shown and not averaged away."""
    from lightning_compress.tracking.provenance import provenance  # late, since it takes torch with it

    said = " ".join(str(error).split())
    if isinstance(error, Exception):
        said = f"{type(error).__name__}: {said}"
    name = str(config.get("name", row))
    return _write(root, spec_name, Record(row, seed, "failed", name, {}, {}, config, provenance(), 0.0, error=said))


def problems(root: Path, spec: Spec) -> list[str]:
    """What is wrong with the records of a table, each in one line: of another experiment, of no commit, of no row."""
    found = []
    for name, records in read(root, spec).items():
        row = spec.rows[name]
        for record in records.values() if row.runs_of is None else ():
            reasons = [uncommitted(record.provenance), *stale(record, row, spec.overrides)]
            found += [f"{place(root, spec.name, name, record.seed)}: {reason}" for reason in reasons if reason]
    for path in sorted((root / spec.name).glob("*/*")):
        row_of = spec.rows.get(path.parent.name)
        if row_of is None or row_of.experiment is None:
            found.append(f"{path}: the table has no row {path.parent.name!r} with runs of its own")
    return found


def uncommitted(provenance: Mapping[str, Any]) -> str | None:
    """Why a run of this provenance is no record, None if it is one."""
    if provenance.get("commit") is None:
        return "its code was in no repository: run it from a clone, so that the record can name a commit"
    return "its code was not committed: commit first, then run it again" if provenance.get("dirty") else None


def stale(record: Record, row: Row, overrides: Sequence[str] = ()) -> list[str]:
    """In what a record is not of the runs that its row asks for; configurations may have gained keys since.

    `overrides` are those of all rows. Choices of a group (`optimizer=sgd`) leave no trace that could be compared.
    """
    found = []
    named = next((text[5:] for text in row.overrides if text.startswith("name=")), row.experiment)
    if record.name != named:
        found.append(f"is of {record.name!r}, the row is of {named!r}")
    if record.seed not in row.seeds:
        found.append(f"the row has no seed {record.seed}")
    for text in (*overrides, *row.overrides):
        key, equals, asked = text.lstrip("+").partition("=")
        if not equals or not _is_compared(key) or "${" in asked:
            continue
        got: Any = record.config
        for part in key.split("."):
            got = got.get(part) if isinstance(got, Mapping) else None
        if not _holds(_value(asked), got):
            found.append(f"the row has {text}, the record {got!r}")
    return found


def _is_compared(key: str) -> bool:
    first, _, rest = key.partition(".")
    is_choice = (_CONF / key.partition("@")[0]).is_dir()  # also model@teacher.model=resnet56
    return first not in _FREE and rest not in _WHEREABOUTS.get(first, ()) and not is_choice


def _value(text: str) -> Any:
    try:
        return strict_yaml.parse(text)
    except yaml.YAMLError:
        return text


def _holds(asked: Any, got: Any) -> bool:
    if isinstance(asked, dict):
        return isinstance(got, Mapping) and all(_holds(value, got.get(key)) for key, value in asked.items())
    return bool(asked == got)


def _of_row(folder: Path) -> list[Record]:
    return [_record(path) for path in folder.glob("seed*.json")]


def _record(path: Path) -> Record:
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): take it back from the repository, or remove it") from error
    if (record.row, f"seed{record.seed}") != (path.parent.name, path.stem):
        raise ValueError(f"{path} holds row {record.row!r}, seed {record.seed}: it must lie where these say")
    return record


def _write(root: Path, spec_name: str, record: Record) -> Path:
    path = place(root, spec_name, record.row, record.seed)
    write_json(path, {**asdict(record), "config": _anywhere(record.config)})
    return path


def _anywhere(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without where files were."""
    found = copy.deepcopy(dict(config))
    parts = [*found.items(), *(("data", phase.get("data")) for phase in found.get("phases", []))]
    for key, part in parts:
        if isinstance(part, dict):
            part.update(dict.fromkeys(part.keys() & set(_WHEREABOUTS.get(key, ()))))
    return found
