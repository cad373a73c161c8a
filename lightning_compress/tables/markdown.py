"""A table as Markdown."""

import re
from collections.abc import Iterable, Sequence

from lightning_compress.tables import cells
from lightning_compress.tables.cells import Cell, Section, Sheet
from lightning_compress.tables.verdict import RULE


def render(sheet: Sheet) -> str:
    """The page; published values are in italics with the mark of their source, ours bold."""
    spec = sheet.spec
    counts = ", ".join(f"{count} {word}" for word, count in sheet.counts.items())
    parts = [
        f"# {escape(spec.title)}",
        f"[{escape(cells.citation(spec.paper))}]({spec.paper.url})",
        re.sub(r"\n+", "\n\n", spec.about.strip()),
        f"**{counts}.** {cells.SELECTED[spec.selection]} {escape(RULE)}",
        *(["Known departures:\n\n" + "\n".join(f"- {each}" for each in spec.departures)] if spec.departures else []),
        "*Published*, mean ± standard deviation (runs), with the mark of its source; **ours**, the same; Δ, the "
        "difference to the row's baseline.",
    ]
    for section in sheet.sections:
        parts += _section(section)
    if sheet.claims:
        heads = ["published ordering", "ours", "verdict", "source"]
        lines = [[each.text, f"**{each.here}**" if each.here else "", each.word, each.source] for each in sheet.claims]
        parts += ["## Orderings", _table(heads, ([escape(line[0]), *line[1:3], escape(line[3])] for line in lines))]
    parts += ["## Sources", "\n".join(f"- {mark}: {escape(source)}" for mark, source in sheet.sources.items())]
    parts.append(f"Digest of the records: `{sheet.digest}`")
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    r"""Text that Markdown shows as it is, in a table too.

    >>> escape("a_b | c")
    'a\\_b \\| c'
    """
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def _section(section: Section) -> list[str]:
    heads = [""]
    for column in section.columns:
        cited = column.name in section.published
        heads += (
            [f"{escape(column.title)}<br>*published*", "**ours**"] if cited else [f"{escape(column.title)}<br>**ours**"]
        )
    rows = []
    for line in section.lines:
        row = [escape(line.row.title)]
        for column in section.columns:
            cell = line.cells[column.name]
            row += [_paper(cell), _here(cell)] if column.name in section.published else [_here(cell)]
        rows.append(row)
    remarks = [f"- {escape(line.row.title)}: {text}" for line in section.lines for text in line.remarks]
    parts = [f"## {escape(section.title)}" if section.title else "", _table(heads, rows), "\n".join(remarks)]
    runs = [
        [escape(line.row.title), f"`{line.runs.command}`", *map(escape, line.runs.facts)]
        for line in section.lines
        if line.runs is not None
    ]
    if runs:
        table = _table(["row", "made again by", *cells.FACTS], runs)
        parts.append(f"<details><summary>Runs</summary>\n\n{table}\n\n</details>")
    return parts


def _paper(cell: Cell) -> str:
    first = f"*{cell.paper}* <sup>{cell.mark}</sup>" if cell.paper else ""
    return "<br>".join(filter(None, (first, cell.paper_delta and f"*Δ {cell.paper_delta}*")))


def _here(cell: Cell) -> str:
    said = f"{cell.word}: {cell.why}" if cell.why else cell.word
    return "<br>".join(
        filter(None, (cell.here and f"**{cell.here}**", escape(said), cell.here_delta and f"Δ {cell.here_delta}"))
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])
