"""The command line: what each command of `lightning-compress` does; `arguments.py` says what it takes."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_compress.arguments import LIMITS, parser


def _train(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.run import config, ranks
    from lightning_compress.run.train import announce, train

    console.quiet = not ranks.is_first()
    composed = config.compose(arguments.overrides, folders=arguments.search_in)
    if arguments.show:
        console.print_json(data=composed)
        return
    folder = arguments.out or Path("runs") / composed["name"]
    console.print(announce(composed, folder), soft_wrap=True)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("lightning_compress").setLevel(logging.INFO)  # one line an epoch
    result = train(composed, folder)
    table = Table(title=f"{result.name}: {folder}", show_header=False)
    for name, value in sorted({**result.metrics, **result.cost}.items()):
        table.add_row(
            name,
            f"{value:,.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value),
        )
    console.print(table)


def _sweep(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.sweep.command import sweep

    sweep(arguments, console)


def _dashboard(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.sweep.command import study
    from lightning_compress.sweep.dashboard import serve

    found, folder = study(arguments.study, arguments)
    console.print(f"http://{arguments.host}:{arguments.port} (Ctrl-C ends it)", soft_wrap=True)
    serve(folder, found.storage, host=arguments.host, port=arguments.port)


def _sync(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.tracking.sync import sync

    report = sync(arguments.folder)
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)
    if not report.complete:
        raise ValueError("not everything arrived; the same command tries again")


def _report(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.sweep import elsewhere, record, report
    from lightning_compress.sweep.command import study

    found, folder = study(arguments.study, arguments)
    for one in elsewhere.bring(folder, found, arguments.latency):
        console.print(f"{one.run} on {one.label}: {one.latency_ms:.3g} ms, {one.latency_ratio:.3g} of the dense one's",
                      markup=False, highlight=False, soft_wrap=True)  # fmt: skip
    collected = record.collect(folder)
    Path(found.report).mkdir(parents=True, exist_ok=True)
    report.write(collected, folder, Path(found.report))
    console.print(f"report: {Path(found.report) / 'index.html'}", soft_wrap=True)


def _pick(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.deploy import folder as deploy
    from lightning_compress.sweep import pick, record, runs
    from lightning_compress.sweep.command import study

    found, folder = study(arguments.study, arguments)
    asked = {option: getattr(arguments, option.removeprefix("--").replace("-", "_")) for option, *_ in LIMITS}
    limits, collected = pick.limits(found, asked), record.collect(folder)
    choice = pick.pick(collected, limits)
    point, numbers = choice.point, pick.told(collected, choice)
    within = ", ".join(f"{option} {text}" for option, text in asked.items() if text is not None)
    said = [f"{point.name}: the best {found.quality} of {choice.fitting} front points within {within or 'no limits'}"]
    said += [f"  {name}: {value}" for name, value in numbers.items()]
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
    run, to = folder / "runs" / point.run, arguments.to or Path("runs/deploy") / f"{found.name}-{point.run}"
    back = f"lightning-compress report {folder} --latency latency-*.json"
    about = deploy.About(f"{found.name}, {point.name}", numbers, back)
    gap = deploy.write(run, runs.reference_file(folder, found) or run / "dense.onnx", to, about)
    console.print(
        f"parity with PyTorch on {gap['samples']:.0f} validation samples: largest gap {gap['max_error']:.3g}, mean "
        f"{gap['relative_error']:.3g} of the outputs' size (rounding explains {gap['tolerance']:.3g}), same class on "
        f"{gap['agreement']:.1%}\nwritten: {to}",
        highlight=False,
        soft_wrap=True,
    )


def _export(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.run.api import export

    console.print(f"written: {export(arguments.packed, arguments.to, arguments.allow)}", soft_wrap=True)


def _measure(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.export import chooser
    from lightning_compress.run.compare import compare

    names = arguments.runtimes.split(",")
    asked = {key: getattr(arguments, key) for key in ("batch_size", "threads", "rounds", "allow")}
    found = compare(arguments.files, runtimes=names, **asked)
    first = next(iter(found.latencies.values()))
    table = Table(
        title=f"{first.device}, batch {first.batch_size}, {first.threads} thread(s), {first.rounds} rounds side by side"
    )
    for column in ("file", "runtime", "median ms", "p10", "p90", "ratio", "times faster", "gap"):
        words = column in ("file", "runtime")
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    for (name, on), timing in sorted(found.latencies.items(), key=lambda item: item[1].ratio):
        numbers = (timing.median_ms, timing.p10_ms, timing.p90_ms, timing.ratio, 1 / timing.ratio)
        row = (*(f"{number:.3f}" for number in numbers), f"{found.gaps[name, on]:.2g}")
        table.add_row(name, timing.runtime, *row)
    console.print(table)
    said = [
        f"fastest for {name}: {found.fastest(name).runtime}" for name in dict.fromkeys(n for n, _ in found.latencies)
    ]
    said += [f"left out: {name} on {on}: {why}" for (name, on), why in found.left_out.items()]
    said += [f"not here: {one.name}: {why}" for one in chooser.named(names) if (why := one.why_not()) is not None]
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)


def _latency_table(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.deploy import table
    from lightning_compress.export.latency_table import Table as LatencyTable
    from lightning_compress.run import config

    if arguments.show is None:
        composed = config.compose(arguments.overrides, folders=arguments.search_in)
        timing = {"batch": arguments.batch_size, "threads": arguments.threads, "rounds": arguments.rounds}
        if min(timing.values()) < 1:
            raise ValueError("latency-table: expected --batch-size, --threads and --rounds from 1 up")
        with console.status("writing models") as status:
            if arguments.export:
                table.write_folder(composed, arguments.export, status.update)
            else:
                table.measure(composed, arguments.out, timing, status.update)
        console.print(f"written: {arguments.export or arguments.out}", soft_wrap=True)
    if not arguments.export:
        for line in LatencyTable.read(arguments.show or arguments.out).told():
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.tables.command import table

    table(arguments, console)


def _compare(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.compare.command import compare

    compare(arguments.sources, arguments.out, console)


def _sensitivity(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.run import config, sensitivity
    from lightning_compress.sweep import curves

    words = arguments.words
    if len(words) == 1 and Path(words[0]).suffix == ".json":
        found = sensitivity.read(Path(words[0]))
    else:
        settings, model = sensitivity.subject(words, lambda texts: config.compose(texts, folders=arguments.search_in))
        with console.status("reading the data") as status:
            found = sensitivity.scan(settings, model, arguments.scan, arguments.batches, status.update)
        page = curves.write(found, arguments.out or Path("runs/sensitivity") / found["name"])
        console.print(f"written: {page}", soft_wrap=True)
    for axis, layers in found["scans"].items():
        heads, rows = curves.table(layers)
        shown = Table("layer", title=f"{curves.TITLES[axis][1]}: accuracy in %, {found['base']['accuracy']:.2%} whole")
        for head in heads:
            shown.add_column(head, justify="right")
        for layer, cells in rows:
            shown.add_row(layer, *cells)
        console.print(shown)
    said = [f"left out: {axis}: {why}" for axis, why in found["left_out"].items()]
    said += [] if arguments.drop is None else sensitivity.lines(found, arguments.drop)
    console.print("\n".join(said), markup=False, highlight=False, soft_wrap=True)


_COMMANDS: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "train": _train,
    "sweep": _sweep,
    "dashboard": _dashboard,
    "sync": _sync,
    "export": _export,
    "measure": _measure,
    "latency-table": _latency_table,
    "table": _table,
    "sensitivity": _sensitivity,
    "report": _report,
    "pick": _pick,
    "compare": _compare,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0, or a nonzero status after a one-line error."""
    reader = parser()
    # argparse takes overrides in one place only; known-args parsing lets them stand before and after options.
    arguments, rest = reader.parse_known_args(argv)
    if rest and (
        arguments.command not in ("train", "latency-table", "table") or any(text.startswith("-") for text in rest)
    ):
        reader.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        (arguments.papers if arguments.command == "table" else arguments.overrides).extend(rest)
    try:
        _COMMANDS[arguments.command](arguments, Console())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except SystemExit as end:
        if end.code is not None:
            raise
        # So Lightning ends a fit that SIGTERM came in; a scheduler must not take it for a finished one.
        print("stopped by SIGTERM; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGTERM
    except Exception as error:
        if not _is_expected(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _is_expected(error: Exception) -> bool:
    """Whether an error says what the user must change; everything else is a fault of ours and shows its traceback."""
    # Imported late: they take torch with them, which --help does not need.
    from lightning_compress.core.compressor import NoEffectError
    from lightning_compress.export.verify import ExportMismatchError

    return isinstance(error, ValueError | OSError | NoEffectError | ExportMismatchError)


if __name__ == "__main__":
    sys.exit(main())
