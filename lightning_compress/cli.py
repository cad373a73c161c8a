"""The command line: `lightning-compress train | sweep | export | measure | report`."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

EXAMPLES = {
    "train": """\
One run: train under the methods that are switched on, export, check, measure, record.

  lightning-compress train prune=gradual quantize=affine methods.prune.sparsity.last=0.9
  lightning-compress train experiment=mnist/lenet5_joint seed=1
  lightning-compress train data=images data.source=photos model._target_=my_package.Net allow=[my_package]

Keys are Hydra overrides: groups are data, model, prune, quantize, distill, optimizer, scheduler; any argument of a
class can be set (methods.prune.score=squared). The same command resumes an interrupted run.""",
    "sweep": """\
A study: a dense teacher, dense baselines, many trials, the Pareto front, confirmation on fresh seeds, a report.

  lightning-compress sweep digits              the study shipped as sweeps/digits.yaml
  lightning-compress sweep my/study.yaml --dry-run

The same command continues an interrupted study and prints the front of a finished one.""",
    "export": """\
Write the ONNX file of a packed model.

  lightning-compress export runs/digits/model.lcz --to model.onnx""",
    "measure": """\
Time ONNX files side by side in one call; the first is the reference of the ratios.

  lightning-compress measure runs/a/dense.onnx runs/a/model.onnx --batch-size 64 --threads 1""",
    "report": """\
Write a study's report again from its results.

  lightning-compress report digits""",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-compress", description="From a network to a trusted Pareto front: accuracy, bytes, latency."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {
        name: commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, text in EXAMPLES.items()
    }
    for name in ("train", "sweep", "report"):
        made[name].add_argument("--search-in", type=Path, action="append", default=[], metavar="FOLDER",
                                help="a folder with experiments/ or sweeps/ of yours")  # fmt: skip
    made["train"].add_argument("overrides", nargs="*", help="key=value")
    made["train"].add_argument("--out", type=Path, help="folder of the run (default: runs/<name>)")
    made["train"].add_argument("--show", action="store_true", help="print the resolved configuration and stop")
    for name in ("sweep", "report"):
        made[name].add_argument("study", help="name or path of a study file")
        made[name].add_argument("--out", type=Path, help="folder of the study (default: runs/sweeps/<name>)")
    made["sweep"].add_argument("--dry-run", action="store_true", help="check the study and say what it takes")
    made["sweep"].add_argument("--fresh", action="store_true", help="start anew; the old study is kept aside")
    made["export"].add_argument("packed", type=Path)
    made["export"].add_argument("--to", type=Path, required=True, help="the ONNX file to write")
    made["export"].add_argument("--allow", action="append", default=[], metavar="PACKAGE",
                                help="a package of yours that the network comes from")  # fmt: skip
    made["measure"].add_argument("files", type=Path, nargs="+", help="ONNX files")
    for option, default in (("--batch-size", 64), ("--threads", 1), ("--rounds", 50)):
        made["measure"].add_argument(option, type=int, default=default)
    return parser


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


def _study(arguments: argparse.Namespace):  # type: ignore[no-untyped-def]  # noqa: ANN202
    from lightning_compress.run import config
    from lightning_compress.sweep import spec

    found = spec.load(spec.find(arguments.study, config.shipped_folders(arguments.search_in)))
    return found, arguments.out or Path("runs/sweeps") / found.name


def _sweep(arguments: argparse.Namespace, console: Console) -> None:
    from functools import partial

    from lightning_compress.run import config
    from lightning_compress.run.evaluate import test_metrics
    from lightning_compress.run.train import announce, train
    from lightning_compress.sweep import engine, plan
    from lightning_compress.sweep.progress import Progress
    from lightning_compress.sweep.runs import Tools

    found, folder = _study(arguments)
    tools = Tools(partial(config.compose, folders=arguments.search_in), train, test_metrics)
    if arguments.dry_run:
        engine.check(found, tools)
        console.print(plan.plan(found, folder).text())
        return
    console.print(announce(tools.compose(found.base), folder), soft_wrap=True)
    engine.sweep(found, tools, folder=folder, progress=Progress(console), fresh=arguments.fresh)
    console.print(f"report: {Path(found.report) / 'index.html'}", soft_wrap=True)


def _report(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.sweep import record, report

    found, folder = _study(arguments)
    collected = record.collect(folder)
    Path(found.report).mkdir(parents=True, exist_ok=True)
    report.write(collected, folder, Path(found.report))
    console.print(f"report: {Path(found.report) / 'index.html'}", soft_wrap=True)


def _export(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.run.api import export

    console.print(f"written: {export(arguments.packed, arguments.to, arguments.allow)}", soft_wrap=True)


def _measure(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.run.measure import compare_files

    found = compare_files(arguments.files, arguments.batch_size, arguments.threads, arguments.rounds)
    first = next(iter(found.values()))
    table = Table(
        title=f"{first.device}, batch {first.batch_size}, {first.threads} thread(s), {first.rounds} rounds side by side"
    )
    for column in ("file", "runtime", "median ms", "p10", "p90", "ratio", "times faster"):
        words = column in ("file", "runtime")
        table.add_column(column, justify="left" if words else "right", overflow="fold")
    for name, timing in found.items():
        numbers = (timing.median_ms, timing.p10_ms, timing.p90_ms, timing.ratio, 1 / timing.ratio)
        table.add_row(name, timing.runtime, *(f"{number:.3f}" for number in numbers))
    console.print(table)


_COMMANDS: dict[str, Callable[[argparse.Namespace, Console], None]] = {
    "train": _train,
    "sweep": _sweep,
    "export": _export,
    "measure": _measure,
    "report": _report,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0, or a nonzero status after a one-line error."""
    parser = _parser()
    # argparse takes overrides in one place only; known-args parsing lets them stand before and after options.
    arguments, rest = parser.parse_known_args(argv)
    if rest and (arguments.command != "train" or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    try:
        _COMMANDS[arguments.command](arguments, Console())
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
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
