"""What a sweep shows while it runs: a bar, counts and the front on a terminal, plain lines anywhere else."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from lightning_compress.sweep import record as records
from lightning_compress.sweep.record import Point, StudyRecord

_PLAIN_WIDTH = 200
_FRONT_ROWS = 12


@final
class Progress:
    r"""A context manager that the sweep reports to; without a terminal one line per finished run, no control codes.

    >>> import io
    >>> out = io.StringIO()
    >>> with Progress(Console(file=out)) as progress:
    ...     progress.expect(2)
    ...     progress.done("trial 0: val/accuracy 0.9")
    >>> out.getvalue()
    '[1/2] trial 0: val/accuracy 0.9\n'
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._live: Live | None = None
        self._num_done, self._num_expected = 0, 0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            expand=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._front: RenderableType = ""
        self._counts = ""

    def __enter__(self) -> "Progress":
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(self._screen(), console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def expect(self, runs: int) -> None:
        """So many more runs are to come."""
        self._num_expected += runs
        self._bar.update(self._task, total=self._num_expected)

    def begin(self, what: str) -> None:
        """A run, or another piece of work, has begun."""
        self._bar.update(self._task, description=escape(what))
        self._refresh()

    def done(self, line: str) -> None:
        """A run has ended, well or not."""
        self._num_done += 1
        self._bar.update(self._task, completed=self._num_done)
        self.note(f"[{self._num_done}/{self._num_expected}] {line}{self._counts}")

    def note(self, line: str) -> None:
        """Something to know."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._refresh()

    def state(self, counts: Mapping[str, int], front: Sequence[tuple[str, Mapping[str, float]]]) -> None:
        """How many trials ended how, and the front so far."""
        self._counts = f" | trials {', '.join(f'{number} {state}' for state, number in counts.items())}"
        table = Table(title=f"front: {len(front)} of{self._counts.removeprefix(' |')}", title_justify="left", box=None)
        for name in ("", *(front[0][1] if front else ())):
            table.add_column(name, justify="right" if name else "left")
        for name, numbers in front[:_FRONT_ROWS]:
            table.add_row(escape(name), *(shown(key, value) for key, value in numbers.items()))
        if len(front) > _FRONT_ROWS:
            table.add_row(f"and {len(front) - _FRONT_ROWS} more")
        self._front = table
        self._refresh()

    def finish(self, record: StudyRecord) -> None:
        """Print the front beside the dense baselines."""
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH
        self.console.print(final_table(record))
        for warning in record.foresight.warnings:
            self.note(f"mind: {warning}")

    def _screen(self) -> RenderableType:
        return Group(self._bar, self._front)

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._screen())


def shown(name: str, value: float | None) -> str:
    """A number as people read it; bytes by their name.

    >>> shown("cost/packed_bytes", 4312.0), shown("val/accuracy", 0.97222222)
    ('4.31 kB', '0.9722')
    """
    if value is None:
        return ""
    if name.endswith("_bytes"):
        return size(value)
    return f"{value:.4g}"


def told(title: str, numbers: Mapping[str, float], seconds: float) -> str:
    """The line about a run that has ended.

    >>> told("trial 7", {"val/accuracy": 0.9}, 3.04)
    'trial 7: val/accuracy 0.9 (3.0 s)'
    """
    return f"{title}: {', '.join(f'{key} {shown(key, value)}' for key, value in numbers.items())} ({seconds:.1f} s)"


def size(number: float) -> str:
    """A number of bytes with its unit, 1 kB = 1000 B.

    >>> size(950), size(1_250_000)
    ('950 B', '1.25 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.3g} {unit}"


def final_table(record: StudyRecord) -> Table:
    """The front and the dense baselines, one row each."""
    spec, table = record.spec, Table(box=None, pad_edge=False)
    test = spec.quality.replace("val/", "test/")
    headings = ("", spec.quality, "confirmed", test, "packed", "smaller", "latency", "faster", "sparsity", "bits", "")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for point in (*record.front, *record.baselines):
        table.add_row(*(escape(cell) for cell in _cells(record, point, test)))
    return table


def _cells(record: StudyRecord, point: Point, test: str) -> list[str]:
    numbers = records.row(record, point)
    confirmed = shown("", numbers["confirmed_mean"])
    if numbers["confirmed_sd"] is not None:
        confirmed += f" ± {numbers['confirmed_sd']:.2g} ({numbers['confirmed_n']})"
    return [
        point.name,
        shown("", point.values[0]),
        confirmed,
        shown("", numbers.get(test)),
        size(numbers["packed_bytes"]),
        f"{numbers['smaller']:.1f}x",
        f"{numbers['latency_ms']:.3g} ms",
        f"{numbers['faster']:.2f}x",
        f"{numbers['sparsity']:.0%}",
        numbers["bits"],
        f"beaten by dense {numbers['beaten_by']}" if numbers["beaten_by"] else "",
    ]
