"""What a table says, as text that knows nothing of the format: cells, verdicts, deltas, claims, and where runs are."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from lightning_compress.tables.records import Record, stale
from lightning_compress.tables.schema import Claim, Column, Paper, Published, Row, Spec
from lightning_compress.tables.verdict import Measured, difference, judge, ordering

Records = Mapping[str, Mapping[int, Record]]
_NEEDS = {"cpu": "", "gpu": "needs a GPU", "data": "needs a data set of yours"}
_KNOWN = {
    "V-paper": "read in the paper",
    "V-repo": "read in a repository",
    "V-2nd": "quoted elsewhere",
    "M": "from memory, not judged",
}
FACTS = ("seeds", "commit", "device", "hours")
SELECTED = {
    "last": "The last epoch of each run counts.",
    "validation": "The epoch that is best on the validation split counts.",
}


@final
@dataclass(frozen=True)
class Cell:
    """One quantity of one row: published (`paper`) and ours (`here`), each with its delta to the row's baseline."""

    paper: str = ""
    mark: str = ""
    here: str = ""
    word: str = ""
    why: str = ""
    paper_delta: str = ""
    here_delta: str = ""


@final
@dataclass(frozen=True)
class Runs:
    """What makes the runs of a row again, and `FACTS` of those there are."""

    command: str
    facts: tuple[str, ...]


@final
@dataclass(frozen=True)
class Line:
    """A row with its cells by column; `remarks` are why it is not reproduced, and what is wrong with its runs."""

    row: Row
    cells: Mapping[str, Cell]
    runs: Runs | None
    remarks: tuple[str, ...]


@final
@dataclass(frozen=True)
class Section:
    """Rows that stand under one title, the columns that any of them fills, and those with `published` values."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    published: frozenset[str]


@final
@dataclass(frozen=True)
class Judged:
    """A claim as text: what is said, what we have, whether it holds."""

    text: str
    source: str
    here: str
    word: str


@final
@dataclass(frozen=True)
class Sheet:
    """A whole table; `sources` say by mark where a published value stands, `digest` is that of all our numbers."""

    spec: Spec
    sections: tuple[Section, ...]
    sources: Mapping[str, str]
    claims: tuple[Judged, ...]
    counts: Mapping[str, int]
    digest: str


def sheet(spec: Spec, records: Records) -> Sheet:
    """Everything that the pages of a table say."""
    marks: dict[tuple[str, str], str] = {}
    for row in spec.rows.values():
        for each in row.published.values():
            marks.setdefault((each.source, each.confidence), _mark(len(marks)))
    lines = [
        Line(
            row,
            {name: _cell(spec, records, row, name, marks) for name in spec.columns},
            _runs(spec, records, row),
            _remarks(spec, records, row),
        )
        for row in spec.rows.values()
    ]
    titles = dict.fromkeys(line.row.section for line in lines)
    return Sheet(
        spec=spec,
        sections=tuple(
            _section(spec, title, [each for each in lines if each.row.section == title]) for title in titles
        ),
        sources={mark: f"{source} ({_KNOWN[confidence]})" for (source, confidence), mark in marks.items()},
        claims=tuple(_claim(spec, records, claim) for claim in spec.claims),
        counts=_counts([cell for line in lines for cell in line.cells.values() if cell.paper]),
        digest=_digest(records),
    )


def citation(paper: Paper) -> str:
    """The paper, and which of its tables, without its address."""
    return f"{paper.authors}, {paper.title}, {paper.venue}, {paper.tables}"


def _section(spec: Spec, title: str, lines: list[Line]) -> Section:
    filled = [column for name, column in spec.columns.items() if any(line.cells[name] != Cell() for line in lines)]
    published = frozenset(name for line in lines for name in line.row.published)
    return Section(title, tuple(filled), tuple(lines), published)


def _cell(spec: Spec, records: Records, row: Row, name: str, marks: Mapping[tuple[str, str], str]) -> Cell:
    column, published = spec.columns[name], row.published.get(name)
    own = _values(spec, records, row, name)
    word, why = _verdict(spec, records, row, name)
    paper_delta, here_delta = _deltas(spec, records, row, name)
    paper, mark = "", ""
    if published is not None:
        dagger = "†" if published.confidence == "M" else ""
        paper, mark = _paper(published, column), marks[published.source, published.confidence] + dagger
    return Cell(paper, mark, _here(own, len(_owner(spec, row).seeds), column), word, why, paper_delta, here_delta)


def _owner(spec: Spec, row: Row) -> Row:
    return row if row.runs_of is None else spec.rows[row.runs_of]


def _values(spec: Spec, records: Records, row: Row, name: str) -> dict[int, float]:
    """Our values by seed; none where the runs do not have the number."""
    column = spec.columns[name]
    done = {seed: record.numbers for seed, record in records[row.name].items() if record.status == "done"}
    if not all(set(column.metric.split(" / ")) <= set(numbers) for numbers in done.values()):
        return {}
    return {seed: column.value(numbers) for seed, numbers in done.items()}


def _verdict(spec: Spec, records: Records, row: Row, name: str) -> tuple[str, str]:
    published, found = row.published.get(name), records[row.name]
    owner, own = _owner(spec, row), _values(spec, records, row, name)
    failed = sum(record.status != "done" for record in found.values())
    if owner.experiment is None or (published is None and not failed):
        return "", ""
    if failed:
        return f"failed {failed} of {len(owner.seeds)}", ""
    if not found:
        return "not run", _NEEDS[owner.needs]
    if published is None or not own:
        return "not judged", f"the runs have no {spec.columns[name].metric}"
    verdict = judge(
        published, Measured.of(list(own.values())), _shift(spec, records, row, name), spec.columns[name].decimals
    )
    return verdict.word, verdict.why


def _shift(spec: Spec, records: Records, row: Row, name: str) -> float:
    """What our baseline is off by, where both of its values are known."""
    if row.baseline is None or row.baseline == row.name:
        return 0.0
    baseline = spec.rows[row.baseline]
    published, own = baseline.published.get(name), _values(spec, records, baseline, name)
    return Measured.of(list(own.values())).mean - published.value if published is not None and own else 0.0


def _deltas(spec: Spec, records: Records, row: Row, name: str) -> tuple[str, str]:
    """The published difference to the baseline, and ours."""
    if row.baseline is None or row.baseline == row.name:
        return "", ""
    baseline, decimals = spec.rows[row.baseline], spec.columns[name].decimals
    cells = row.published.get(name), baseline.published.get(name)
    values = _values(spec, records, row, name), _values(spec, records, baseline, name)
    paper = "" if cells[0] is None or cells[1] is None else f"{cells[0].value - cells[1].value:+.{decimals}f}"
    return paper, f"{difference(*values)[0]:+.{decimals}f}" if all(values) else ""


def _paper(published: Published, column: Column) -> str:
    rounded = f"{published.value:.{column.decimals}f}"
    text = rounded if isinstance(published.value, float) and float(rounded) == published.value else str(published.value)
    spread = "" if published.sd is None else f" ± {published.sd:g}"
    return text + spread + ("" if published.n is None else f" ({published.n})")


def _here(own: Mapping[int, float], asked: int, column: Column) -> str:
    if not own:
        return ""
    value = Measured.of(list(own.values()))
    spread = "" if value.sd is None else f" ± {value.sd:.{column.decimals}f}"
    return f"{value.mean:.{column.decimals}f}{spread} ({value.n}{f' of {asked}' if value.n < asked else ''})"


def _runs(spec: Spec, records: Records, row: Row) -> Runs | None:
    if row.experiment is None:
        return None
    found = records[row.name].values()
    return Runs(
        f"lightning-compress table {spec.name} --only {row.name} --again",
        (
            ", ".join(str(each.seed) for each in found) or "none yet",
            ", ".join(dict.fromkeys(str(each.provenance.get("commit"))[:10] for each in found)),
            ", ".join(dict.fromkeys(str(each.provenance.get("device")) for each in found)),
            f"{sum(each.wall_seconds for each in found) / 3600:.2f}" if found else "",
        ),
    )


def _remarks(spec: Spec, records: Records, row: Row) -> tuple[str, ...]:
    found = records[row.name].values() if row.experiment is not None else ()
    failed = [f"seed {each.seed} failed: {each.error}" for each in found if each.status != "done"]
    old = [f"seed {each.seed} does not fit: {why}" for each in found for why in stale(each, row, spec.overrides)]
    unmarked = ["not run"] if row.experiment is not None and not found and not row.published else []
    return (*([] if row.cause is None else [row.cause]), *unmarked, *failed, *old)


def _claim(spec: Spec, records: Records, claim: Claim) -> Judged:
    column, better, worse = spec.columns[claim.column], spec.rows[claim.better], spec.rows[claim.worse]
    by = f" by at least {claim.least:g}" if claim.least else ""
    text = f"{column.title}: {_named(better)} better than {_named(worse)}{by}"
    one, other = _values(spec, records, better, claim.column), _values(spec, records, worse, claim.column)
    if not one or not other:
        return Judged(text, claim.source, "", "not run")
    mean, error, how = difference(one, other)
    gain = mean if column.better == "higher" else -mean
    spread = "" if error is None else f" ± {error:.{column.decimals}f}"
    here = f"{mean:+.{column.decimals}f}{spread} ({how})"
    return Judged(text, claim.source, here, ordering(gain, error, claim.least))


def _named(row: Row) -> str:
    return f"{row.section}: {row.title}" if row.section else row.title


def _counts(published: list[Cell]) -> dict[str, int]:
    """How many published values have each verdict, in words; all of them are in one of these."""
    words = {"reproduced": "reproduced", "not": "not reproduced", "not judged": "not judged", "not run": "not run"}
    found = Counter(words.get(cell.word, "failed" if cell.word else "cited only") for cell in published)
    return {word: found[word] for word in (*words.values(), "failed", "cited only") if found[word]}


def _mark(index: int) -> str:
    """Marks of sources: a to z, then aa, ab and so on."""
    return (_mark(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _digest(records: Records) -> str:
    """Tells whether any number behind the table changed, were it in a digit that is not shown."""
    numbers = {
        row: {str(seed): [record.status, record.numbers] for seed, record in found.items()}
        for row, found in records.items()
    }
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:12]
