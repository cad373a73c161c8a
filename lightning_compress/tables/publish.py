"""A table at W&B: a run with its cells and an artifact of its pages, its file and its records, and a report of it."""

import hashlib
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from lightning_compress.core.files import write_json, write_text
from lightning_compress.tables import cells, markdown, render, wandb_report
from lightning_compress.tables.cells import Records, Sheet
from lightning_compress.tables.records import place
from lightning_compress.tables.schema import Spec
from lightning_compress.tracking.mode import one_line
from lightning_compress.tracking.wandb import Labels, Run, choose_mode, log_run

PROJECT = "lightning-compress"
AXIS = "records"
COLUMNS = ("section", "row", "column", "published", "source", "ours", "verdict", "why", "published delta", "our delta")
_UPLOAD_SECONDS = 60.0


def publish(spec: Spec, records: Records, file: Path, folder: Path, mode: str, project: str = PROJECT) -> list[str]:
    """Log the table of the YAML `file` as the W&B run that `folder` has; what is to be told, a line each.

    The run is one however often it is published; `mode` is auto, online, offline or disabled. A failure of W&B is a
    warning and no error.
    """
    chosen = choose_mode(folder, mode)
    if chosen.name == "disabled":
        return [chosen.sentence]
    sheet = cells.sheet(spec, records)
    told = [chosen.sentence]
    with log_run(
        labels(spec, folder, project),
        config=asdict(spec),
        folder=folder,
        mode=chosen.name,
        x_axis=AXIS,
        patience=_UPLOAD_SECONDS,
    ) as run:
        run.log(numbers(sheet, records))
        run.table("cells", COLUMNS, rows(sheet))
        with tempfile.TemporaryDirectory() as name:
            _stage(sheet, records, file, Path(name))
            run.artifact(Path(name), spec.name, type="table", metadata=dict(sheet.counts), aliases=[sheet.digest])
        told += [f"W&B run of the table: {run.url}"] if run.url else []
        told.append(_report(sheet, run, folder))
    return told


def labels(spec: Spec, folder: Path, project: str = PROJECT) -> Labels:
    """What the table's own run is filed under, beside the runs of its cells; its id is that of the folder."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return Labels(
        project=project,
        id=f"{spec.name}-table-{digest}",
        name=spec.name,
        group=spec.name,
        job_type="table",
        tags=(spec.name, "table"),
    )


def numbers(sheet: Sheet, records: Records) -> dict[str, float]:
    """How many records there are, and how many cells have each verdict."""
    own = [found for row, found in records.items() if sheet.spec.rows[row].experiment is not None]
    counts = {f"cells/{word}": number for word, number in sheet.counts.items()}
    hours = sum(record.wall_seconds for found in own for record in found.values()) / 3600
    return {AXIS: sum(map(len, own)), **counts, "hours": hours}


def rows(sheet: Sheet) -> list[list[str]]:
    """A row for each cell that says anything, by `COLUMNS`."""
    return [
        [
            section.title,
            line.row.title,
            column.title,
            cell.paper,
            sheet.sources.get(cell.mark.removesuffix("†"), ""),
            cell.here,
            cell.word,
            cell.why,
            cell.paper_delta,
            cell.here_delta,
        ]
        for section in sheet.sections
        for line in section.lines
        for column in section.columns
        if (cell := line.cells[column.name]) != cells.Cell()
    ]


def _stage(sheet: Sheet, records: Records, file: Path, folder: Path) -> None:
    """Put what the table is made of, and its pages, into a folder."""
    shutil.copy(file, folder)
    for ending, made in render.FORMATS.items():
        write_text(folder / f"{sheet.spec.name}.{ending}", made(sheet))
    for row, found in records.items():
        if sheet.spec.rows[row].experiment is not None:
            for record in found.values():
                write_json(place(folder / "records", sheet.spec.name, row, record.seed), asdict(record))


def _report(sheet: Sheet, run: Run, folder: Path) -> str:
    """The line that says where the report is, or why there is none."""
    if run.handle is None or run.url is None:
        return "no W&B report: W&B is not online"
    try:
        home = (urlsplit(run.url).netloc, run.handle.entity, run.handle.project)
        return f"W&B report: {wandb_report.save(sheet.spec, markdown.render(sheet), home, folder)}"
    except ImportError:
        return "no W&B report: that takes pip install 'lightning-compress[reports]'"
    except Exception as error:
        return f"no W&B report: {one_line(error)}"
