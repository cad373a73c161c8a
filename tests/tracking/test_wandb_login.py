import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.tracking.leg import read_leg, together
from lightning_compress.tracking.mode import Mode
from tests.tracking.fresh import output, start
from tests.tracking.server import KEY, Server


def epochs(folder: Path) -> list[int]:
    """The epochs that the offline run in `folder` holds, read by W&B's own public tool."""
    (log,) = folder.glob("wandb/offline-run-*/run-study-00007.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    return [record["history"]["item"]["epoch"] for record in map(json.loads, lines) if record["type"] == "history"]


MIRROR_ONE_RUN = """
    mode = choose_mode(folder)
    print(mode.name, mode.sentence)
    with log_run(labels, config={"seed": 3}, folder=folder, mode=mode.name) as run:
        assert "WANDB_SERVICE" not in os.environ, "children must start a service of their own"
        for epoch in range(4):
            run.log({"epoch": epoch, "loss": 1 / (1 + epoch)})
    """


def test_logged_in_by_key_a_run_goes_online_and_the_terminal_stays_quiet(server: Server, tmp_path: Path) -> None:
    process = start(MIRROR_ONE_RUN, tmp_path / "study", tmp_path, **server.environment)
    assert output(process) == (
        f"online W&B logs online (you are logged in); a copy stays in {tmp_path / 'study' / 'wandb'}.\n"
    )
    (run,) = server.runs.values()
    assert (run.name, run.asked["groupName"], run.asked["jobType"]) == ("study-00007", "study", "trial")
    assert (run.column("epoch"), run.column("loss")) == ([0, 1, 2, 3], [1.0, 1 / 2, 1 / 3, 1 / 4])
    assert run.exit_code == 0


@pytest.mark.slow
def test_a_training_notes_where_its_run_is_seen(server: Server, tmp_path: Path) -> None:
    code = """
        from lightning_compress.cli import main
        few = ["model.width=0.25", "epochs=1", "measure.latency=false", "speed.threads=1"]
        main(["train", "--out", str(folder), "name=seen", *few])
        """
    output(start(code, tmp_path / "online", tmp_path, **server.environment), 280)
    (run,) = server.runs
    noted = json.loads((tmp_path / "online/result.json").read_text())["provenance"]
    assert noted["wandb"] == f"{server.url}/me/lightning-compress/runs/{run}"
    output(start(code, tmp_path / "offline", tmp_path, WANDB_BASE_URL=server.url), 280)
    assert "wandb" not in json.loads((tmp_path / "offline/result.json").read_text())["provenance"]


def test_logged_in_by_netrc(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine {server.url[7:]}\n login user\n password {KEY}\n")
    (tmp_path / ".netrc").chmod(0o600)
    process = start("print(choose_mode(folder).name)", tmp_path / "study", tmp_path, WANDB_BASE_URL=server.url)
    assert output(process) == "online\n"


def test_not_logged_in_is_offline_and_says_how_to_upload(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    text = output(start(MIRROR_ONE_RUN, folder, tmp_path, WANDB_BASE_URL=server.url))
    assert text == (
        "offline W&B logs offline (no W&B login found). "
        f"To upload: `wandb login`, then `lightning-compress sync {folder}`.\n"
    )
    assert server.runs == {}
    assert epochs(folder) == [0, 1, 2, 3]


def test_wandb_is_not_imported_until_a_run_is_opened(tmp_path: Path) -> None:
    code = """
        print(choose_mode(folder, "disabled"))
        with log_run(labels, config={}, folder=folder, mode="disabled") as run:
            run.log({"epoch": 1})
            run.table("front", ["a"], [[1]])
            run.artifact(folder, "a", type="model")
        print("wandb" in sys.modules)
        """
    assert output(start(code, tmp_path / "study", tmp_path)) == f"{Mode('disabled', 'W&B is off.')}\nFalse\n"
    assert not (tmp_path / "study").exists()


def test_a_wandb_that_was_started_before_us_is_quiet_too(tmp_path: Path) -> None:
    code = """
        import wandb
        wandb.setup()
        with log_run(labels, config={}, folder=folder, mode="offline") as run:
            print(run.handle is not None)
        """
    assert output(start(code, tmp_path / "study", tmp_path)) == "True\n"


@pytest.fixture
def closed_url() -> str:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.mark.slow
def test_a_server_that_is_down_means_offline_within_seconds(closed_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    began = time.perf_counter()
    text = output(start(MIRROR_ONE_RUN, folder, tmp_path, WANDB_BASE_URL=closed_url, WANDB_API_KEY=KEY))
    assert time.perf_counter() - began < 12
    assert text.startswith(f"offline W&B logs offline (Failed to authenticate with {closed_url}")
    assert epochs(folder) == [0, 1, 2, 3]


LOG_ONLINE = """
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with log_run(labels, config={}, folder=folder, mode="online") as run:
            run.log({"epoch": 0})
            sys.stdin.readline()
            run.log({"epoch": 1})
            run.summary({"a": 1})
    print(f"{time.perf_counter() - start} {len(caught)}", *(warning.message for warning in caught))
    """


def all_epochs(folder: Path) -> list[int]:
    """The epochs in every log of the folder, online ones too."""
    logs = folder.glob("wandb/*run-*/run-*.wandb")
    legs = [leg for leg in map(read_leg, logs) if leg is not None]
    return [row["epoch"] for row in together(legs).rows]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["down", "hang", 500, 429, 403])
def test_a_run_that_cannot_go_online_is_kept_offline_within_seconds(
    fault: Any, server: Server, closed_url: str, tmp_path: Path
) -> None:
    environment = server.environment | ({"WANDB_BASE_URL": closed_url} if fault == "down" else {})
    server.fault = None if fault == "down" else fault
    process = start(LOG_ONLINE, tmp_path / "study", tmp_path, **environment)
    seconds, count, message = output(process).split(maxsplit=2)
    assert float(seconds) < 25
    assert int(count) == 1
    assert message.startswith("W&B run study-00007: could not start online (")
    assert message.endswith("): it is kept offline\n")
    assert all_epochs(tmp_path / "study") == [0, 1]
    again = start(LOG_ONLINE, tmp_path / "study", tmp_path, **environment)
    seconds, count = output(again).split(maxsplit=1)
    assert (float(seconds) < 8, int(count)) == (True, 0), "the next run must not wait for the same server"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", 500, 429, 403])
def test_a_server_that_fails_in_the_middle_holds_a_run_up_for_seconds_and_nothing_is_lost(
    fault: Any, server: Server, tmp_path: Path
) -> None:
    process = start(LOG_ONLINE, tmp_path / "study", tmp_path, **server.environment)
    while "study-00007" not in server.runs or not server.runs["study-00007"].lines:
        assert process.poll() is None, output(process)
        time.sleep(0.05)
    server.fault = fault
    seconds, count, *_ = output(process).split(maxsplit=2)
    assert float(seconds) < 40
    assert int(count) <= 1
    assert all_epochs(tmp_path / "study") == [0, 1]
    server.fault = None
    assert "all runs are at" in output(start("print(sync(folder))", tmp_path / "study", tmp_path, **server.environment))
    assert server.runs["study-00007"].column("epoch") == [0, 1]


def test_a_mode_that_was_chosen_asks_the_server_for_nothing(server: Server, tmp_path: Path) -> None:
    code = """
        with log_run(labels, config={}, folder=folder, mode="online") as run:
            run.log({"epoch": 0})
        """
    output(start(code, tmp_path / "study", tmp_path, **server.environment))
    assert server.requests["Viewer"] == 0
    assert server.requests["UpsertBucket"] > 0


@pytest.mark.slow
def test_a_killed_process_keeps_what_it_logged(tmp_path: Path) -> None:
    code = """
        with log_run(labels, config={}, folder=folder, mode="offline") as run:
            for epoch in range(5):
                run.log({"epoch": epoch})
            print("logged", flush=True)
            time.sleep(60)
        """
    process = start(code, tmp_path / "study", tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "logged\n"
    time.sleep(2.5)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert epochs(tmp_path / "study") == [0, 1, 2, 3, 4]


def test_a_run_that_goes_on_online_repeats_and_drops_nothing(server: Server, tmp_path: Path) -> None:
    code = """
        for first, last in ((0, 3), (3, 5)):
            with log_run(labels, config={"seed": 3}, folder=folder, mode="online") as run:
                for epoch in range(first, last):
                    run.log({"epoch": epoch})
                run.summary({f"to/{last}": 1})
        """
    assert output(start(code, tmp_path / "study", tmp_path, **server.environment)) == ""
    (run,) = server.runs.values()
    assert (run.column("epoch"), run.column("_step")) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert run.summary.keys() >= {"to/3", "to/5"}
