"""What `lightning-compress compare` does: a short table on the terminal, the rest on a page."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_compress.compare import differences, fronts, page
from lightning_compress.compare.subject import Run, Study, read

FOLDER = Path("runs/compare")
_SHORT = ("packed_bytes", "sparsity", "params", "relative_bops", "latency_ms", "latency_ratio")
_NAMED = 8


def compare(paths: Sequence[Path], folder: Path | None, console: Console) -> Path:
    """Print how what lies at `paths` differs, and write its page into `folder`; the page's file.

    Raises:
        ValueError: fewer than two paths, two of the same, or one that holds nothing whole to compare.
    """
    subjects = read(paths)
    runs = [one for one in subjects if isinstance(one, Run)]
    studies = [one for one in subjects if isinstance(one, Study)]
    if studies:
        console.print(_table(studies, fronts.table(studies)))
    if runs:
        console.print(_table(runs, _short(runs)))
    if len(runs) > 1:
        console.print(_said([differences.settings(run.result) for run in runs]), highlight=False, soft_wrap=True)
    file = page.write(subjects, folder or FOLDER)
    console.print(f"written: {file}", soft_wrap=True)
    return file


def _short(runs: Sequence[Run]) -> list[differences.Row]:
    wanted = ("test/", "val/", *(f"cost/{name}" for name in _SHORT), "wall_seconds")
    numbers = differences.side_by_side([differences.numbers(run.result) for run in runs])
    return [
        (name, [f"{cell} ({gap})" if gap else cell for cell, gap in cells])
        for name, cells in numbers
        if name.startswith(wanted)
    ]


def _table(subjects: Sequence[Run] | Sequence[Study], rows: Sequence[differences.Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", *(one.label for one in subjects)):
        table.add_column(escape(column), justify="right" if column else "left", overflow="fold")
    for name, cells in rows:
        table.add_row(name, *map(escape, cells))
    return table


def _said(settings: Sequence[dict[str, object]]) -> str:
    names = [name for name, _ in differences.differing(settings)]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return escape(f"{len(names)} settings differ{': ' if names else ''}{', '.join(names[:_NAMED])}{more}")
