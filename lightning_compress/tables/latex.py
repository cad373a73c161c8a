"""A table as a LaTeX document: one `longtable` a section, ruled by `booktabs`."""

import re
from collections.abc import Iterable, Sequence

from lightning_compress.tables import cells
from lightning_compress.tables.cells import Cell, Section, Sheet
from lightning_compress.tables.prose import pieces
from lightning_compress.tables.verdict import RULE

_HEAD = r"""\documentclass[10pt]{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{array,booktabs,longtable}
\usepackage[hidelinks]{hyperref}
\setlength{\parindent}{0pt}\setlength{\parskip}{6pt}\setlength{\tabcolsep}{3pt}
\newcolumntype{L}[1]{>{\raggedright\arraybackslash}p{#1}}
\begin{document}
"""
_SIGNS = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "†": r"$\dagger$",
        "Δ": r"$\Delta$",
        "\N{MULTIPLICATION SIGN}": r"$\times$",
        "≤": r"$\le$",
    },
    **{"≥": r"$\ge$", "→": r"$\to$", "\N{MINUS SIGN}": "$-$", "`": r"\textasciigrave{}", '"': r"\textquotedbl{}"},
}
_KINDS = {"text": "{}", "code": r"\texttt{{{}}}", "strong": r"\textbf{{{}}}", "em": r"\emph{{{}}}"}


def render(sheet: Sheet) -> str:
    """The document; published values are in italics with the mark of their source, ours bold."""
    spec = sheet.spec
    counts = ", ".join(f"{count} {word}" for word, count in sheet.counts.items())
    parts = [
        rf"\section*{{{escape(spec.title)}}}",
        rf"{escape(cells.citation(spec.paper))}. \url{{{spec.paper.url}}}",
        _prose(spec.about),
        rf"\textbf{{{escape(counts)}.}} {escape(cells.SELECTED[spec.selection])} {escape(RULE)}",
        *_items([_prose(each) for each in spec.departures], "Known departures:"),
        r"\emph{Published}, mean $\pm$ standard deviation (runs), with the mark of its source; "
        r"\textbf{ours}, the same; $\Delta$, the difference to the row's baseline.",
    ]
    for section in sheet.sections:
        parts += _section(section)
    if sheet.claims:
        rows = [(escape(each.text), _bold(each.here), each.word, escape(each.source)) for each in sheet.claims]
        heads = ["published ordering", "ours", "verdict", "source"]
        parts += [r"\subsection*{Orderings}", _table(heads, [0.44, 0.22, 0.12, 0.14], rows)]
    parts += [r"\subsection*{Sources}", *_items([f"{escape(k)}: {escape(v)}" for k, v in sheet.sources.items()])]
    parts.append(rf"Digest of the records: \texttt{{{sheet.digest}}}")
    return _HEAD + "\n\n".join(part for part in parts if part) + "\n\n\\end{document}\n"


def escape(text: str) -> str:
    r"""Text that LaTeX sets as it is.

    >>> escape("50 % of a_b")
    '50 \\% of a\\_b'
    """
    # Two hyphens would be set as a dash, and a copied command would be wrong.
    return "".join(_SIGNS.get(sign, sign) for sign in text).replace("--", "-{}-")


def _prose(text: str) -> str:
    return "".join(
        rf"\href{{{url}}}{{{escape(inner)}}}" if kind == "a" else _KINDS[kind].format(escape(inner))
        for kind, inner, url in pieces(re.sub(r"\n+", "\n\n", text.strip()))
    )


def _section(section: Section) -> list[str]:
    heads, shares = [""], [0.8]
    for column in section.columns:
        title, cited = escape(column.title), column.name in section.published
        heads += [rf"{title}, \emph{{published}}", r"\textbf{ours}"] if cited else [rf"{title}, \textbf{{ours}}"]
        shares += [0.4, 0.6] if cited else [0.6]
    rows = []
    for line in section.lines:
        row = [escape(line.row.title)]
        for column in section.columns:
            cell = line.cells[column.name]
            row += [_paper(cell), _here(cell)] if column.name in section.published else [_here(cell)]
        rows.append(row)
    # What is between columns takes 6 pt of a line of 757 pt.
    widths = [share / max(2.2, sum(shares)) * (1 - 0.008 * len(shares)) for share in shares]
    remarks = [f"{escape(line.row.title)}: {_prose(text)}" for line in section.lines for text in line.remarks]
    title = rf"\subsection*{{{escape(section.title)}}}" if section.title else ""
    parts = [title, _table(heads, widths, rows), *_items(remarks)]
    runs = [
        [escape(line.row.title), rf"\texttt{{{escape(line.runs.command)}}}", *map(escape, line.runs.facts)]
        for line in section.lines
        if line.runs is not None
    ]
    if runs:
        heads = ["row", "made again by", *cells.FACTS]
        parts.append(_table(heads, [0.16, 0.36, 0.08, 0.1, 0.16, 0.05], runs, size=r"\scriptsize"))
    return parts


def _paper(cell: Cell) -> str:
    first = rf"\emph{{{escape(cell.paper)}}}\textsuperscript{{{escape(cell.mark)}}}" if cell.paper else ""
    return _stacked(first, rf"\emph{{$\Delta$ {cell.paper_delta}}}" if cell.paper_delta else "")


def _here(cell: Cell) -> str:
    said = f"{cell.word}: {cell.why}" if cell.why else cell.word
    return _stacked(_bold(cell.here), escape(said), rf"$\Delta$ {cell.here_delta}" if cell.here_delta else "")


def _stacked(first: str, *rest: str) -> str:
    return r"\newline ".join(filter(None, (first, *(rf"{{\scriptsize {each}}}" for each in rest if each))))


def _bold(text: str) -> str:
    return rf"\textbf{{{escape(text)}}}" if text else ""


def _items(items: Sequence[str], head: str = "") -> list[str]:
    lines = "\n".join(rf"\item {each}" for each in items)
    return [f"{head}\n\\begin{{itemize}}\n{lines}\n\\end{{itemize}}"] if items else []


def _table(heads: Sequence[str], widths: Sequence[float], rows: Iterable[Sequence[str]], size: str = r"\small") -> str:
    """A `longtable` whose widths are shares of the line, with its head on each page."""
    columns = "".join(rf"L{{{width:.3f}\linewidth}}" for width in widths)
    head, lines = " & ".join(heads), "\n".join(" & ".join(row) + r" \\" for row in rows)
    return (
        f"{{{size}\n\\begin{{longtable}}[l]{{@{{}}{columns}@{{}}}}\n\\toprule\n{head} \\\\\n\\midrule\n\\endhead\n"
        f"\\bottomrule\n\\endlastfoot\n{lines}\n\\end{{longtable}}}}"
    )
