"""The command line: `lightning-compress train | sweep | dashboard | sync | report | export | measure`."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from lightning_compress.sweep.spec import StudySpec

LAUNCHERS = ("inline", "local", "slurm", "ray")
_VERBS = ("status", "stop", "resume", "add-workers")
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
  lightning-compress sweep digits --launcher slurm --workers 16
  lightning-compress sweep status digits
  lightning-compress sweep stop digits
  lightning-compress sweep add-workers digits 4
  lightning-compress sweep resume runs/sweeps/digits

The same command continues an interrupted study and prints the front of a finished one; `resume` does so from the
study's folder alone, copied to another machine perhaps.""",
    "dashboard": """\
Open optuna-dashboard on a study; needs the extra lightning-compress[dashboard].

  lightning-compress dashboard digits --port 8080""",
    "sync": """\
Upload a study's offline W&B runs, then verify that history, tables and artifacts arrived.

  lightning-compress sync runs/sweeps/digits""",
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
    for name in ("train", "sweep", "report", "dashboard"):
        made[name].add_argument("--search-in", type=Path, action="append", default=[], metavar="FOLDER",
                                help="a folder with experiments/ or sweeps/ of yours")  # fmt: skip
    made["train"].add_argument("overrides", nargs="*", help="key=value")
    made["train"].add_argument("--out", type=Path, help="folder of the run (default: runs/<name>)")
    made["train"].add_argument("--show", action="store_true", help="print the resolved configuration and stop")
    made["sweep"].add_argument("words", nargs="+", metavar="[status|stop|resume|add-workers] STUDY [NUMBER]")
    for name in ("report", "dashboard"):
        made[name].add_argument("study", help="name or path of a study file, or a study's folder")
    for name in ("sweep", "report", "dashboard"):
        made[name].add_argument("--out", type=Path, help="folder of the study (default: runs/sweeps/<name>)")
    made["sweep"].add_argument("--launcher", choices=LAUNCHERS, help="where runs run (default: what the study says)")
    made["sweep"].add_argument("--workers", type=int, help="runs at once (default: one for each GPU, or core)")
    made["dashboard"].add_argument("--host", default="127.0.0.1")
    made["dashboard"].add_argument("--port", type=int, default=8080)
    made["sync"].add_argument("folder", type=Path, help="folder of a study or a run")
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


def _study(name: str, arguments: argparse.Namespace) -> "tuple[StudySpec, Path]":
    """A study and its folder: by name, by file, or by the folder itself."""
    from lightning_compress.run import config
    from lightning_compress.sweep import record, spec

    if (Path(name) / record.FILE).exists():
        return record.read_spec(Path(name))[0], Path(name)
    found = spec.load(spec.find(name, config.shipped_folders(arguments.search_in)))
    return found, arguments.out or Path("runs/sweeps") / found.name


def _sweep(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.sweep import control, record
    from lightning_compress.sweep.status import status

    verb, words = "run", list(arguments.words)
    if words[0] in _VERBS:
        verb = words.pop(0)
    if len(words) != (2 if verb == "add-workers" else 1):
        number = " and a number of workers" if verb == "add-workers" else ""
        raise ValueError(f"sweep {verb}: expected a study{number}, got {' '.join(words) or 'nothing'}")
    found, folder = _study(words[0], arguments)
    if verb == "status":
        console.print(status(folder).text(), markup=False, highlight=False, soft_wrap=True)
    elif verb == "stop":
        control.ask(folder, stop=True)
    elif verb == "add-workers":
        control.ask(folder, add=_count(words[1]))
    else:
        _run(record.read_spec(folder)[0] if verb == "resume" else found, folder, arguments, console)


def _count(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise ValueError(f"sweep add-workers: expected a whole number from 1 up, got {word!r}")
    return int(word)


def _run(found: "StudySpec", folder: Path, arguments: argparse.Namespace, console: Console) -> None:
    from dataclasses import replace
    from functools import partial

    from lightning_compress.launch.make import devices, make
    from lightning_compress.run import config
    from lightning_compress.sweep import check, engine, plan
    from lightning_compress.sweep.progress import Progress
    from lightning_compress.sweep.runs import Tools

    asked = {"launcher": arguments.launcher, "workers": arguments.workers}
    launch = {**found.launch, **{key: value for key, value in asked.items() if value is not None}}
    if launch.get("devices") is None:
        launch["devices"] = devices(launch.get("launcher", "local"))
    found = replace(found, launch=launch)
    tools = Tools(partial(config.compose, folders=arguments.search_in))
    if arguments.dry_run:
        check.check(found, tools)
        console.print(plan.plan(found, folder).text())
        return
    chosen = found.launching
    launcher = make(chosen.launcher, workers=chosen.workers, folder=folder, options=chosen.options)
    engine.sweep(found, tools, launcher, folder=folder, progress=Progress(console), fresh=arguments.fresh)
    console.print(f"report: {Path(found.report) / 'index.html'}", soft_wrap=True)


def _dashboard(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.sweep.dashboard import serve

    found, folder = _study(arguments.study, arguments)
    console.print(f"http://{arguments.host}:{arguments.port} (Ctrl-C ends it)", soft_wrap=True)
    serve(folder, found.storage, host=arguments.host, port=arguments.port)


def _sync(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.tracking.sync import sync

    report = sync(arguments.folder)
    console.print(str(report), markup=False, highlight=False, soft_wrap=True)
    if not report.complete:
        raise ValueError("not everything arrived; the same command tries again")


def _report(arguments: argparse.Namespace, console: Console) -> None:
    from lightning_compress.sweep import record, report

    found, folder = _study(arguments.study, arguments)
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
    "dashboard": _dashboard,
    "sync": _sync,
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
