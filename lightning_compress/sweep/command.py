"""What the commands on a study do, once their arguments are read."""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from lightning_compress.launch.make import devices, make
from lightning_compress.run import config
from lightning_compress.sweep import check, control, engine, plan, record, spec
from lightning_compress.sweep.progress import Progress
from lightning_compress.sweep.runs import Tools
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.sweep.status import status

_VERBS = ("status", "stop", "resume", "add-workers")


def study(name: str, arguments: argparse.Namespace) -> tuple[StudySpec, Path]:
    """A study and its folder: by name, by file, or by the folder itself."""
    if (Path(name) / record.FILE).exists():
        return record.read_spec(Path(name))[0], Path(name)
    found = spec.load(spec.find(name, config.shipped_folders(arguments.search_in)))
    return found, arguments.out or Path("runs/sweeps") / found.name


def sweep(arguments: argparse.Namespace, console: Console) -> None:
    """Run a study, or see to one that runs."""
    verb, words = "run", list(arguments.words)
    if words[0] in _VERBS:
        verb = words.pop(0)
    if len(words) != (2 if verb == "add-workers" else 1):
        number = " and a number of workers" if verb == "add-workers" else ""
        raise ValueError(f"sweep {verb}: expected a study{number}, got {' '.join(words) or 'nothing'}")
    found, folder = study(words[0], arguments)
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


def _run(found: StudySpec, folder: Path, arguments: argparse.Namespace, console: Console) -> None:
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
