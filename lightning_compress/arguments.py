"""What the command line takes: its commands, their options and their examples."""

import argparse
from pathlib import Path

LAUNCHERS = ("inline", "local", "slurm", "ray")
SCANS = ("unstructured", "channel", "bits", "rank")
LIMITS = (
    ("--max-bytes", "N", "most bytes of the packed file: 20000 or 20kB"),
    ("--max-latency", "MS|RATIO", "most milliseconds per batch (0.5ms), or times the dense network's (0.5x)"),
    ("--min-accuracy", "A", "least quality on the validation split: 0.97 or 97%%"),
)
EXAMPLES = {
    "train": """\
One run: train under the methods that are switched on, export, check, measure, record.

  lightning-compress train prune=gradual quantize=affine methods.prune.sparsity.last=0.9
  lightning-compress train experiment=mnist/lenet5_joint seed=1
  lightning-compress train data=images data.source=photos model._target_=my_package.Net allow=[my_package]

Keys are Hydra overrides: groups are data, model, reuse, tie, lowrank, slim, prune, share, freeze, quantize,
distill, mutual, own_teacher, adversarial, optimizer, scheduler; any argument of a class can be set
(methods.prune.score=squared). The same command resumes an interrupted run.""",
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
Time ONNX files side by side in one call; the first at its fastest is the reference of the ratios. With --runtimes on
every runtime that is there; packed .lcz files run in PyTorch too.

  lightning-compress measure runs/a/dense.onnx runs/a/model.onnx --batch-size 64 --threads 1
  lightning-compress measure runs/a/dense.onnx runs/a/model.lcz --runtimes all""",
    "latency-table": """\
Measure how long each layer of a network takes at many channel counts: a latency table, and its error on whole networks.

  lightning-compress latency-table model=resnet20 model.shortcut=B data=cifar10 --out cpu.json
  lightning-compress latency-table model=resnet20 model.shortcut=B data=cifar10 --export pi
  lightning-compress latency-table --show cpu.json

With measure.table=cpu.json runs and sweeps take their latency from it. --export writes a folder for another device,
where `python measure_table.py` needs numpy and onnxruntime only and writes the table.""",
    "table": """\
The table of a paper: what is published beside what runs here give, as pages in Markdown, HTML and LaTeX.

  lightning-compress table hinton2015            run what has no record yet, then write the pages
  lightning-compress table hinton2015 --dry-run  what that would be
  lightning-compress table hinton2015 --only hard --seeds 0 1 --again
  lightning-compress table hinton2015 --launcher slurm --workers 16
  lightning-compress table --smoke --workers 2   whether each row of each table can run, on made-up data
  lightning-compress table hinton2015 --render   the pages again, from the records in reports/records/hinton2015
  lightning-compress table --check               whether all pages are what their records give

A table is written down in reports/tables/<paper>.yaml. The same command goes on with runs that were stopped. Overrides
may say where and how fast runs are trained (speed.threads=2, wandb.mode=offline), not what. After new runs the table
goes to W&B as a run beside theirs; online as a report too, with the extra lightning-compress[reports].""",
    "sensitivity": """\
What each layer alone can lose: validation accuracy with one layer pruned, in fewer bits, or of low rank.

  lightning-compress sensitivity runs/digits
  lightning-compress sensitivity experiment=mnist/lenet5_dense weights=lenet5.pt --scan unstructured bits
  lightning-compress sensitivity runs/sensitivity/digits/sensitivity.json --drop 0.5

Without training after it. --drop prints lines for an experiment's file: the most for each layer that costs at most so
many points of accuracy.""",
    "report": """\
Write a study's report again from its results, with what was measured on other devices.

  lightning-compress report digits
  lightning-compress report digits --latency runs/deploy/digits-trial-7/latency-*.json""",
    "pick": """\
Choose the best front point within limits, and write the folder that goes to another device.

  lightning-compress pick digits --max-bytes 20kB --max-latency 0.6x --min-accuracy 0.97
  lightning-compress pick runs/sweeps/digits --max-latency 0.5ms --to pi

Its predict.py and measure.py need numpy and onnxruntime only: `python predict.py --check` compares with PyTorch on real
samples, `python measure.py` times it there, and `report --latency` brings that back as a column.""",
    "compare": """\
Hold runs, records of tables and studies side by side: a short table here, and a page with settings that differ,
numbers, curves, fronts, layers and where they come from.

  lightning-compress compare runs/a runs/b
  lightning-compress compare runs/sweeps/digits runs/sweeps/wider --out wider
  lightning-compress compare reports/records/han2015/lenet_5/seed0.json runs/mine

Differences are to the first.""",
}


def parser() -> argparse.ArgumentParser:
    """The parser of the command line, with an example of every command in its help."""
    whole = argparse.ArgumentParser(
        prog="lightning-compress", description="From a network to a trusted Pareto front: accuracy, bytes, latency."
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {
        name: commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name, text in EXAMPLES.items()
    }
    _of_runs(made)
    _of_tables(made)
    _of_studies(made)
    return whole


def _of_runs(made: dict[str, argparse.ArgumentParser]) -> None:
    made["train"].add_argument("overrides", nargs="*", help="key=value")
    made["train"].add_argument("--out", type=Path, help="folder of the run (default: runs/<name>)")
    made["train"].add_argument("--show", action="store_true", help="print the resolved configuration and stop")
    made["sync"].add_argument("folder", type=Path, help="folder of a study or a run")
    made["export"].add_argument("packed", type=Path)
    made["export"].add_argument("--to", type=Path, required=True, help="the ONNX file to write")
    for name in ("export", "measure"):
        made[name].add_argument("--allow", action="append", default=[], metavar="PACKAGE",
                                help="a package of yours that the network comes from")  # fmt: skip
    made["measure"].add_argument("files", type=Path, nargs="+", help="ONNX files, or packed .lcz ones")
    made["measure"].add_argument("--runtimes", default="onnxruntime", metavar="NAME,...",
                                 help="all, or some of onnxruntime, openvino, torch, cuda, tensorrt")  # fmt: skip
    for command, rounds in (("measure", 50), ("latency-table", 15)):
        for option, default in (("--batch-size", 64), ("--threads", 1), ("--rounds", rounds)):
            made[command].add_argument(option, type=int, default=default)
    made["latency-table"].add_argument("overrides", nargs="*", help="key=value")
    goal = made["latency-table"].add_mutually_exclusive_group(required=True)
    goal.add_argument("--out", type=Path, help="the JSON file to write")
    goal.add_argument("--export", type=Path, metavar="FOLDER", help="write what measures it on another device")
    goal.add_argument("--show", type=Path, metavar="FILE", help="print what a table says")

    of = made["sensitivity"].add_argument
    of(
        "words",
        nargs="+",
        metavar="FOLDER|FILE|key=value",
        help="a finished run, a scan, or overrides with weights=FILE",
    )
    of("--scan", nargs="+", default=SCANS, metavar="NAME", help=f"some of {', '.join(SCANS)} (default: all)")
    of("--batches", type=int, metavar="N", help="batches of the validation split to read (default: all)")
    of("--drop", type=float, metavar="POINTS", help="print what may go at so many points of accuracy")
    of("--out", type=Path, metavar="FOLDER", help="for the page and its numbers (default: runs/sensitivity/<name>)")


def _of_tables(made: dict[str, argparse.ArgumentParser]) -> None:
    of = made["table"].add_argument
    of("papers", nargs="*", metavar="PAPER|key=value", help="name or path of a table's file, and overrides of its runs")
    of("--only", nargs="+", default=[], metavar="ROW", help="rows to run (default: all that can run here)")
    of("--seeds", nargs="+", type=int, default=[], metavar="N", help="seeds to run (default: all of each row)")
    of("--again", action="store_true", help="run those that have a record, or failed, once more from the start")
    todo = made["table"].add_mutually_exclusive_group()
    todo.add_argument("--dry-run", action="store_true", help="say what is missing and what is left out")
    todo.add_argument("--smoke", action="store_true", help="try each row for a few steps on made-up data")
    todo.add_argument("--render", action="store_true", help="write the pages from the records")
    todo.add_argument("--check", action="store_true", help="fail if a page is not what its records give")
    of("--out", type=Path, metavar="FOLDER", help="folder of the pages (default: reports/tables)")


def _of_studies(made: dict[str, argparse.ArgumentParser]) -> None:
    for name in ("train", "latency-table", "table", "sensitivity", "sweep", "report", "dashboard", "pick"):
        made[name].add_argument("--search-in", type=Path, action="append", default=[], metavar="FOLDER",
                                help="a folder with experiments/ or sweeps/ of yours")  # fmt: skip
    made["sweep"].add_argument("words", nargs="+", metavar="[status|stop|resume|add-workers] STUDY [NUMBER]")
    for name in ("report", "dashboard", "pick"):
        made[name].add_argument("study", help="name or path of a study file, or a study's folder")
    for name in ("sweep", "report", "dashboard", "pick"):
        made[name].add_argument("--out", type=Path, help="folder of the study (default: runs/sweeps/<name>)")
    for name, default in (("sweep", "what the study says"), ("table", "processes of this machine")):
        made[name].add_argument("--launcher", choices=LAUNCHERS, help=f"where runs run (default: {default})")
        made[name].add_argument("--workers", type=int, help="runs at once (default: one for each GPU, or core)")
    made["sweep"].add_argument("--dry-run", action="store_true", help="check the study and say what it takes")
    made["sweep"].add_argument("--fresh", action="store_true", help="start anew; the old study is kept aside")
    made["dashboard"].add_argument("--host", default="127.0.0.1")
    made["dashboard"].add_argument("--port", type=int, default=8080)
    made["report"].add_argument("--latency", type=Path, nargs="+", default=[], metavar="FILE",
                                help="latency-*.json that measure.py of a deploy folder wrote")  # fmt: skip
    for option, form, text in LIMITS:
        made["pick"].add_argument(option, metavar=form, help=text)
    made["pick"].add_argument("--to", type=Path, help="the folder to write (default: runs/deploy/<study>-<run>)")
    made["compare"].add_argument("sources", type=Path, nargs="+", metavar="RUN|STUDY|FILE",
                                 help="a run's or a study's folder, or the JSON file of a run or record")  # fmt: skip
    made["compare"].add_argument("--out", type=Path, metavar="FOLDER", help="for the page (default: runs/compare)")
