"""What `lightning-compress table` does, once its arguments are read."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from lightning_compress.tables import records, render, schema
from lightning_compress.tables.schema import Spec

#: Options that say what is to be run, beside those that each of the others reads.
_OF_RUNS = ("only", "seeds", "again", "launcher", "workers", "overrides")
_READ = {"render": (), "check": (), "smoke": ("only", "workers"), "dry_run": _OF_RUNS}

Say = Callable[[str], None]


def table(arguments: argparse.Namespace, console: Console) -> None:
    """Run what is missing of tables and write their pages; or hold these against their records, or try every row.

    Raises:
        ValueError: there is no table, a run gave no number, a row cannot run, or tables do not agree with their
            records; which is printed before.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    arguments.overrides = [word for word in (*arguments.papers, *arguments.only) if "=" in word]
    for name in ("papers", "only"):
        setattr(arguments, name, [word for word in getattr(arguments, name) if "=" not in word])
    _refuse_unread(arguments)
    specs = _specs(arguments)
    folder = arguments.out or schema.FOLDER
    if arguments.check:
        _check(specs, folder, say)
    elif arguments.smoke:
        _smoke(specs, arguments, say)
    elif arguments.render:
        _render(specs, folder, say)
    else:
        _run(specs, arguments, folder, say)


def _refuse_unread(arguments: argparse.Namespace) -> None:
    for verb, read in _READ.items():
        unread = [name for name in _OF_RUNS if name not in read and getattr(arguments, name) not in (None, [], False)]
        if getattr(arguments, verb) and unread:
            raise ValueError(
                f"table: {', '.join(unread)} say what is run; leave them away, or --{verb.replace('_', '-')}"
            )


def _render(specs: list[Spec], folder: Path, say: Say) -> None:
    for spec in specs:
        for path in render.write(spec, folder):
            say(f"written: {path}")


def _check(specs: list[Spec], folder: Path, say: Say) -> None:
    wrong = [line for spec in specs for line in render.check(spec, folder)]
    for line in wrong:
        say(line)
    if wrong:
        raise ValueError(f"tables do not agree with their records, {len(wrong)} time(s) named above")


def _smoke(specs: list[Spec], arguments: argparse.Namespace, say: Say) -> None:
    from lightning_compress.launch.make import make
    from lightning_compress.tables import engine
    from lightning_compress.tables.smoke import smoke

    several = arguments.workers not in (None, 1)
    launcher = make("local" if several else "inline", workers=arguments.workers, folder=engine.FOLDER)
    wrong = smoke(specs, launcher, say, arguments.only, arguments.search_in)
    if wrong:
        raise ValueError(f"{len(wrong)} rows cannot run: {', '.join(wrong)}")


def _run(specs: list[Spec], arguments: argparse.Namespace, folder: Path, say: Say) -> None:
    from lightning_compress.launch.make import make
    from lightning_compress.launch.slots import discover
    from lightning_compress.run import config
    from lightning_compress.tables import engine

    gpu = arguments.launcher in ("slurm", "ray") or bool(discover())
    place = engine.Place(partial(config.compose, folders=arguments.search_in), say, gpu)
    asked = engine.Asked(arguments.only, arguments.seeds, arguments.again, arguments.overrides)
    lost: list[str] = []
    for paper, spec in zip(arguments.papers, specs, strict=True):
        plan = engine.plan(spec, records.read(records.FOLDER, spec), asked, gpu=gpu)
        for line in (f"{spec.name}: {spec.title}", *plan.lines()):
            say(line)
        if arguments.dry_run:
            continue
        alone = arguments.workers == 1 or len(plan.due) <= 1
        name = arguments.launcher or ("inline" if alone else "local")
        launcher = make(name, workers=arguments.workers, folder=place.runs / spec.name)
        lost += [f"{spec.name}/{one}" for one in engine.run(spec, plan, asked, launcher, place)]
        _render([spec], folder, say)
        if plan.due:
            composed = place.compose([*engine.overrides(spec, plan.due[0].row), *asked.overrides])
            _publish(spec, schema.find(paper), place.runs / spec.name, composed["wandb"], say)
    if lost:
        raise ValueError(f"{len(lost)} runs gave no number: {', '.join(lost)}")


def _publish(spec: Spec, file: Path, folder: Path, wandb: Mapping[str, str], say: Say) -> None:
    from lightning_compress.tables.publish import publish

    found = records.read(records.FOLDER, spec)
    for line in publish(spec, found, file, folder, wandb["mode"], wandb["project"]):
        say(line)


def _specs(arguments: argparse.Namespace) -> list[Spec]:
    wants_all = arguments.check or arguments.render or arguments.smoke
    if not arguments.papers and not wants_all:
        known = [path.stem for path in sorted(schema.FOLDER.glob("*.yaml"))]
        raise ValueError(f"table: name the paper whose runs are missing, one or more of {', '.join(known) or 'none'}")
    paths = [schema.find(name) for name in arguments.papers] or sorted(schema.FOLDER.glob("*.yaml"))
    if not paths:
        raise ValueError(
            f"there is no table in {schema.FOLDER}: run this where there are, or name the path of a .yaml file"
        )
    return [schema.load(path, arguments.search_in) for path in paths]
