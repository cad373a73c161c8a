"""What `lightning-compress table` does, once its arguments are read."""

import argparse

from rich.console import Console

from lightning_compress.tables import render, schema
from lightning_compress.tables.schema import Spec


def table(arguments: argparse.Namespace, console: Console) -> None:
    """Write the pages of tables, or hold them against their records.

    Raises:
        ValueError: there is no table, or tables do not agree with their records; where is printed before.
    """
    folder = arguments.out or schema.FOLDER
    wrong = 0
    for spec in _specs(arguments):
        if arguments.check:
            lines = render.check(spec, folder)
            wrong += len(lines)
        else:
            lines = [f"written: {path}" for path in render.write(spec, folder)]
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if wrong:
        raise ValueError(f"tables do not agree with their records, {wrong} time(s) named above")


def _specs(arguments: argparse.Namespace) -> list[Spec]:
    paths = [schema.find(name) for name in arguments.papers] or sorted(schema.FOLDER.glob("*.yaml"))
    if not paths:
        raise ValueError(
            f"there is no table in {schema.FOLDER}: run this where there are, or name the path of a .yaml file"
        )
    return [schema.load(path, arguments.search_in) for path in paths]
