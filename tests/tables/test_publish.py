import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from lightning_compress.core.files import write_json
from lightning_compress.tables import cells, publish, records, schema
from lightning_compress.tables.records import Record
from lightning_compress.tables.schema import Spec
from lightning_compress.tracking.leg import Leg, read_leg, together
from tests.tracking.fresh import output, start
from tests.tracking.server import Server, serving

SPEC = """
title: Two nets
paper: {authors: A and B, title: On nets, venue: X 2016, url: "https://arxiv.org/abs/1510.00149", tables: table 1}
columns:
  error: {title: "error, %", metric: test/accuracy, scale: -100, offset: 100, better: lower}
rows:
  dense: {title: dense, experiment: mnist/lenet5_dense, seeds: [0, 1],
          published: {error: {value: 1.0, sd: 0.1, source: table 1, confidence: V-paper}}}
  pruned: {title: pruned, experiment: mnist/lenet5_joint, seeds: [0, 1], baseline: dense,
           published: {error: {value: 2, source: page 3, confidence: M}}}
  again: {title: the same, runs_of: dense, published: {error: {value: 5, source: table 1, confidence: V-paper}}}
  cited: {title: cited, published: {error: {value: 3, source: table 1, confidence: V-paper}}}
"""
ROWS = [
    ["", "dense", "error, %", "1.00 ± 0.1", "table 1 (read in the paper)", "1.00 ± 0.14 (2)", "reproduced"],
    ["", "pruned", "error, %", "2", "page 3 (from memory, not judged)", "3.00 (1 of 2)", "not judged"],
    ["", "the same", "error, %", "5", "table 1 (read in the paper)", "1.00 ± 0.14 (2)", "not"],
    ["", "cited", "error, %", "3", "table 1 (read in the paper)", "", ""],
]


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty home, so that neither a login nor a setting of this machine's user plays a part."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_", "NETRC"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The table's file, with three records beside it."""
    found = [("dense", 0, 0.991), ("dense", 1, 0.989), ("pruned", 0, 0.97)]
    for row, seed, accuracy in found:
        name = {"dense": "mnist/lenet5_dense", "pruned": "mnist/lenet5_joint"}[row]
        record = Record(row, seed, "done", name, {"test/accuracy": accuracy}, {}, {}, {"commit": "c" * 40}, 3600.0)
        write_json(records.place(tmp_path / "records", "nets", row, seed), asdict(record))
    path = tmp_path / "nets.yaml"
    path.write_text(SPEC)
    return path


def read(file: Path) -> tuple[Spec, cells.Records]:
    spec = schema.load(file)
    return spec, records.read(file.parent / "records", spec)


def leg(folder: Path) -> Leg:
    """The log of the folder's one run, when all that was finished is on disk."""
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(100):
        found = read_leg(log)
        if found is not None and any(record.HasField("exit") for record in found.records):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{log} has no end")


def test_a_row_for_each_cell(file: Path) -> None:
    sheet = cells.sheet(*read(file))
    assert [row[: len(ROWS[0])] for row in publish.rows(sheet)] == ROWS
    assert publish.rows(sheet)[1][-2:] == ["+1.00", "+2.10"]
    assert {len(row) for row in publish.rows(sheet)} == {len(publish.COLUMNS)}
    assert publish.numbers(sheet, read(file)[1]) == {
        "records": 3,
        "hours": 3.0,
        "cells/reproduced": 1,
        "cells/not reproduced": 1,
        "cells/not judged": 1,
        "cells/cited only": 1,
    }


def test_offline_the_run_holds_cells_pages_and_records(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    told = publish.publish(*read(file), file, folder, "offline")
    assert told == [
        f"W&B logs offline (as asked). To upload: `wandb login`, then `lightning-compress sync {folder}`.",
        "no W&B report: W&B is not online",
    ]
    found = leg(folder)
    run = next(record.run for record in found.records if record.HasField("run"))
    assert (run.run_group, run.job_type, run.display_name) == ("nets", "table", "nets")
    assert run.run_id == publish.labels(read(file)[0], folder).id
    content = together([found])
    assert content.summary["cells/reproduced"] == 1
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/cells*.json")
    assert json.loads(table.read_text())["columns"] == list(publish.COLUMNS)
    assert [row[: len(ROWS[0])] for row in json.loads(table.read_text())["data"]] == ROWS
    (artifact,) = [artifact for artifact in content.artifacts if artifact.name == "nets"]
    assert set(artifact.entries) == {
        *("nets.yaml", "nets.md", "nets.html", "nets.tex"),
        *(f"records/nets/{name}.json" for name in ("dense/seed0", "dense/seed1", "pruned/seed0")),
    }


def test_switched_off_it_logs_nothing(file: Path, tmp_path: Path) -> None:
    assert publish.publish(*read(file), file, tmp_path / "runs", "disabled") == ["W&B is off."]
    assert not (tmp_path / "runs").exists()


def test_tables_of_one_name_in_two_folders_are_two_runs(file: Path, tmp_path: Path) -> None:
    spec, _ = read(file)
    assert publish.labels(spec, tmp_path / "a").id != publish.labels(spec, tmp_path / "b").id


PUBLISH = """
    from lightning_compress.tables import publish, records, schema
    file = folder.parent / "nets.yaml"
    spec = schema.load(file)
    lines = publish.publish(spec, records.read(folder.parent / "records", spec), file, folder, "auto")
    print(*lines[1:], sep="\\n")
    """


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.mark.slow
def test_online_there_is_one_run_and_one_report_however_often(file: Path, tmp_path: Path, server: Server) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra: pip install '.[reports]'")
    for _ in range(2):
        told = output(start(PUBLISH, tmp_path / "runs", tmp_path, **server.environment)).splitlines()
        (run,) = server.runs.values()
        home = f"{server.url}/me/lightning-compress"
        assert told == [
            f"W&B run of the table: {home}/runs/{run.name}",
            f"W&B report: {home}/reports/Two-nets--report0",
        ]
    assert (run.asked["groupName"], run.asked["jobType"], run.exit_code) == ("nets", "table", 0)
    assert b"reproduced" in server.logged(run.name)["nets"].files["nets.md"]
    assert server.logged(run.name)["nets"].files["nets.yaml"] == SPEC.encode()
    assert list(server.reports) == ["report0"], "the second time it is written anew"
    spec = json.loads(server.reports["report0"]["spec"])
    blocks = {block["type"]: block for block in spec["blocks"]}
    assert blocks["markdown-block"]["content"].startswith("# Two nets\n")
    (runs,) = blocks["panel-grid"]["metadata"]["runSets"]
    assert '"name": "group"' in json.dumps(runs["filters"])
    assert '"value": "nets"' in json.dumps(runs["filters"])


@pytest.mark.slow
def test_without_the_extra_or_where_the_server_does_not_take_it_there_is_no_report(
    file: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = '\n    sys.modules["wandb_workspaces"] = None' + PUBLISH
    told = output(start(without, tmp_path / "runs", tmp_path, **server.environment)).splitlines()
    assert told[-1] == "no W&B report: that takes pip install 'lightning-compress[reports]'"
    pytest.importorskip("wandb_workspaces", reason="needs the extra: pip install '.[reports]'")
    monkeypatch.setattr(server, "_GetProjects", lambda asked: {})
    told = output(start(PUBLISH, tmp_path / "runs", tmp_path, **server.environment)).splitlines()
    assert told[0].startswith("W&B run of the table: http")
    assert told[-1].startswith("no W&B report: 1 validation error for GetProjects")
    assert not server.reports
