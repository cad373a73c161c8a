"""Uploads to a server on the loopback; each upload is a process of its own, and so are the runs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_compress.tracking.leg import read_leg, together
from lightning_compress.tracking.sync import SyncReport, sync
from lightning_compress.tracking.transaction_log import read_records
from tests.tracking.fresh import output, start
from tests.tracking.server import Server

RUN = "study-00007"
TWO_LEGS = """
    weights = folder.parent / "weights.bin"
    weights.write_bytes(b"weights" * 10)
    def leg(first, last):
        with log_run(labels, config={"seed": 3, "prune": {"sparsity": 0.5}}, folder=folder, mode="offline") as run:
            for epoch in range(first, last):
                run.log({"epoch": epoch, "val/accuracy": epoch / 8})
            if last == 5:
                run.table("layers", ["name", "bytes"], [["conv", 100]])
                run.artifact(weights, "model-7", type="model", metadata={"accuracy": 0.5}, aliases=["pareto"])
            run.summary({"status": "paused" if last < 5 else "done", "bytes": 1234})
    leg(0, 3)
    leg(3, 5)
    weights.unlink()
    """
SYNC = "print(sync(folder))"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one run in two legs."""
    folder = tmp_path_factory.mktemp("logged") / "study"
    output(start(TWO_LEGS, folder, folder.parent))
    return folder


@pytest.fixture
def study(logged: Path, tmp_path: Path) -> Iterator[Path]:
    """The study, moved: nothing is left where its log says that the artifacts are."""
    folder = tmp_path / "elsewhere" / "study"
    shutil.copytree(logged, folder, symlinks=True)
    hidden = logged.with_name("hidden")
    logged.rename(hidden)
    yield folder
    hidden.rename(logged)


def upload(study: Path, server: Server) -> str:
    return output(start(SYNC, study, study.parent, **server.environment))


def complete(server: Server) -> None:
    """All of the run is there, once."""
    (run,) = server.runs.values()
    assert run.column("val/accuracy") == [0.0, 0.125, 0.25, 0.375, 0.5]
    steps = run.column("_step")
    assert steps == sorted(set(steps))
    assert (run.asked["groupName"], run.asked["jobType"], run.asked["tags"]) == ("study", "trial", ["kd"])
    assert run.config["seed"]["value"] == 3
    assert (run.summary["status"], run.summary["bytes"], run.exit_code) == ("done", 1234, 0)
    model = server.logged(RUN)["model-7"]
    assert (model.state, model.files) == ("COMMITTED", {"weights.bin": b"weights" * 10})
    assert server.logged(RUN)[f"run-{RUN}-layers"].state == "COMMITTED"
    assert any(name.startswith("media/table/layers") for name in run.files)
    assert server.unknown == []


def test_a_moved_study_arrives_whole_and_is_not_sent_twice(study: Path, server: Server) -> None:
    assert upload(study, server) == (f"1 runs uploaded and verified, 0 verified before: all runs are at {server.url}\n")
    complete(server)
    opened = server.requests["UpsertBucket"]
    assert upload(study, server).startswith("0 runs uploaded and verified, 1 verified before: all runs are at ")
    assert server.requests["UpsertBucket"] == opened
    assert not list(study.glob("wandb/*/again-*"))


@pytest.mark.slow
def test_an_upload_that_was_interrupted_is_completed_without_repeating_a_row(study: Path, server: Server) -> None:
    upload(study, server)
    (study / "wandb" / "synced.json").unlink()
    run = server.runs[RUN]
    for number in list(run.lines)[4:]:
        del run.lines[number]
    run.files = {name: body for name, body in run.files.items() if not name.startswith("media")}
    run.summary = {"status": "paused"}
    server.logged(RUN)["model-7"].state = "PENDING"
    assert "all runs are at" in upload(study, server)
    complete(server)


@pytest.mark.slow
def test_an_artifact_that_is_gone_is_named(study: Path, server: Server) -> None:
    (staged,) = [path for path in study.glob("wandb/data/artifacts/staging/*") if path.stat().st_size == 70]
    staged.unlink()
    text = upload(study, server)
    assert text.startswith("0 runs uploaded and verified, 0 verified before, 1 not complete at ")
    assert f"digits/{RUN}: artifact model-7: not there, or not committed\n" in text
    assert f"digits/{RUN}: {staged.name}: this file of an artifact is no longer in the folder\n" in text
    assert "history" not in text


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["history", "summary", "config", "media", "artifact"])
def test_what_a_server_loses_is_named(lost: str, study: Path, server: Server) -> None:
    server.loses = lost
    text = upload(study, server)
    assert "1 not complete" in text
    name = {"media": "files: media/table", "artifact": "artifact model-7"}.get(lost, lost)
    assert f"digits/{RUN}: {name}" in text


@pytest.mark.slow
def test_a_log_with_a_torn_end_arrives_as_far_as_it_goes(study: Path, server: Server) -> None:
    first = min(study.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
    first.write_bytes(first.read_bytes()[:-3])
    assert not read_records(first)[1]
    assert "all runs are at" in upload(study, server)
    complete(server)


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_an_error(study: Path, server: Server) -> None:
    server.fault = 500
    text, _ = start(SYNC, study, study.parent, **server.environment).communicate(timeout=90)
    assert "ConnectionError: Failed to verify credentials" in text


def test_a_folder_without_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no W&B runs"):
        sync(tmp_path)


def test_the_legs_of_a_run_on_disk(logged: Path) -> None:
    logs = sorted(logged.glob("wandb/offline-run-*/run-*.wandb"))
    first, second = (leg for leg in map(read_leg, logs) if leg is not None)
    assert (first.run, first.project, first.whole) == (RUN, "digits", True)
    assert first.started < second.started
    content = together([first, second])
    assert [row["epoch"] for row in content.rows if "val/accuracy" in row] == [0, 1, 2, 3, 4]
    assert {key: content.summary[key] for key in ("status", "bytes")} == {"status": "done", "bytes": 1234}
    assert content.config == {"seed", "prune"}
    assert {artifact.name for artifact in content.artifacts} == {"model-7", f"run-{RUN}-layers"}
    (model,) = [artifact for artifact in content.artifacts if artifact.name == "model-7"]
    assert model.entries["weights.bin"][0] == 70
    assert all(path.exists() for path in second.staged())


def test_a_rewritten_leg_lacks_the_rows_and_keeps_the_rest(logged: Path, tmp_path: Path) -> None:
    log = sorted(logged.glob("wandb/offline-run-*/run-*.wandb"))[-1]
    leg = read_leg(log)
    assert leg is not None
    leg.rewrite(tmp_path / log.name, without=set(), moved=lambda path: path)
    same = read_leg(tmp_path / log.name)
    assert same is not None
    assert same.records == leg.records
    stamp = leg.content.rows[0]["_timestamp"]
    leg.rewrite(tmp_path / log.name, without={stamp}, moved=lambda path: Path("/there") / path.name)
    again = read_leg(tmp_path / log.name)
    assert again is not None
    assert again.content.rows == leg.content.rows[1:]
    assert (again.content.summary, again.content.artifacts) == (leg.content.summary, leg.content.artifacts)
    assert {path.parent for path in again.staged()} == {Path("/there")}


def test_a_report_counts_and_names() -> None:
    report = SyncReport("https://here", ("p/a",), ("p/b",), {"p/c": ("config: lr", "summary: size")})
    assert not report.complete
    assert str(report).splitlines() == [
        "1 runs uploaded and verified, 1 verified before, 1 not complete at https://here; missing there:",
        "p/c: config: lr",
        "p/c: summary: size",
    ]
