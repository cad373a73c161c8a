"""The pages of a table, byte for byte from its file and its records: no time, no machine."""

from pathlib import Path

from lightning_compress.core.files import write_text
from lightning_compress.tables import cells, latex, markdown, page, records
from lightning_compress.tables.schema import Spec

FORMATS = {"md": markdown.render, "html": page.render, "tex": latex.render}


def render(spec: Spec, root: Path = records.FOLDER) -> dict[str, str]:
    """The text of each page by its file name."""
    sheet = cells.sheet(spec, records.read(root, spec))
    return {f"{spec.name}.{ending}": made(sheet) for ending, made in FORMATS.items()}


def write(spec: Spec, folder: Path, root: Path = records.FOLDER) -> list[Path]:
    """Write the pages of a table into `folder`."""
    paths = []
    for name, text in render(spec, root).items():
        write_text(folder / name, text)
        paths.append(folder / name)
    return paths


def check(spec: Spec, folder: Path, root: Path = records.FOLDER) -> list[str]:
    """What is wrong with a table, a line each: its records, and pages in `folder` that are not what these give."""
    found = records.problems(root, spec)
    for name, text in render(spec, root).items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            said = "differs from its records" if path.is_file() else "is missing"
            found.append(f"{path} {said}: lightning-compress table {spec.name} --render")
    return found
