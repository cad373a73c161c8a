"""A table as a W&B report: the page's text above the runs' curves. The only file that imports wandb-workspaces."""

import json
from pathlib import Path

from lightning_compress.core.files import write_json
from lightning_compress.tables import cells
from lightning_compress.tables.schema import Spec

#: In the folder of the table's runs: which report is the table's, so that it is written anew and not once more.
MARK = "report.json"
_TITLE = 128  # characters, W&B's limit


def save(spec: Spec, text: str, home: tuple[str, str, str], folder: Path) -> str:
    """Write the report of a table with the Markdown `text` into `home`: server, entity, project; returns its address.

    Raises:
        Exception: of any kind, where W&B does not take it.
    """
    # Late: it is an extra, takes a second, and warns of the style of its own models.
    import wandb_workspaces.reports.v2 as reports

    _, entity, project = home
    runs = reports.Runset(entity=entity, project=project, name=spec.name, filters=f"Group = {spec.name!r}")
    report = reports.Report(
        entity=entity,
        project=project,
        title=spec.title[:_TITLE],
        description=cells.citation(spec.paper),
        width="fluid",
        blocks=[
            reports.MarkdownBlock(text=text),
            reports.PanelGrid(
                runsets=[runs],
                panels=[
                    reports.LinePlot(x="epoch", y=["val/accuracy"], layout=reports.Layout(w=12, h=8)),
                    reports.RunComparer(diff_only="split", layout=reports.Layout(x=12, w=12, h=8)),
                ],
            ),
        ],
    )
    known = json.loads((folder / MARK).read_text(encoding="utf-8")) if (folder / MARK).exists() else {}
    if known.get("home") == list(home):
        report.id = known["id"]
    report.save()
    write_json(folder / MARK, {"home": home, "id": report.id, "url": report.url})
    return str(report.url)
