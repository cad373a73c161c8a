import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import lightning_compress
from lightning_compress.tracking.wandb import Mode

ROOT = Path(lightning_compress.__file__).parent.parent

# What depends on a login runs in a process of its own: W&B keeps the login and its settings for the whole process.


class Server(ThreadingHTTPServer):
    """As much of a W&B server as one run without files needs; keeps the runs and their history."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []

    def handle_error(self, *_: object) -> None:
        """W&B resets idle connections when it ends; that is no error here."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found[1] if found else ""
        if operation == "Viewer":
            names = {"id": "1", "entity": "me", "username": "me", "name": "me", "email": "me@here", "flags": "{}"}
            return {"viewer": names | {"admin": False, "teams": {"edges": []}, "accounts": []}}
        if operation == "UpsertBucket":
            self.runs.append(variables)
            project = {"id": "1", "name": variables["project"], "entity": {"id": "1", "name": "me"}}
            bucket = {"id": "1", "name": variables["name"], "displayName": "", "config": "{}", "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket | {"project": project}, "inserted": True}}
        if operation == "CreateRunFiles":
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
        return {"serverInfo": {"features": []}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        if self.headers["content-encoding"] == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            request = json.loads(body)
            answer = {"data": self.server.answer(request["query"], request.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.server.history.extend(json.loads(line) for line in lines)
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def start(code: str, folder: Path, home: Path, **environment: str) -> "subprocess.Popen[str]":
    script = f"""
        import os, sys, time, warnings
        from pathlib import Path
        from lightning_compress.tracking.wandb import *
        folder = Path({str(folder)!r})
        labels = Labels(project="digits", id="study-00007", name="trial 7")
        """
    inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script) + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=inherited | {"HOME": str(home)} | environment,
    )


def output(process: "subprocess.Popen[str]") -> str:
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    return text


def epochs(folder: Path) -> list[int]:
    """The epochs that the offline run in `folder` holds, read by W&B's own public tool."""
    (log,) = folder.glob("wandb/offline-run-*/run-study-00007.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
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
    process = start(MIRROR_ONE_RUN, tmp_path / "study", tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY="a" * 40)
    assert output(process) == (
        f"online W&B logs online (you are logged in); a copy stays in {tmp_path / 'study' / 'wandb'}.\n"
    )
    assert {run["name"] for run in server.runs} == {"study-00007"}
    assert [(row["epoch"], row["loss"]) for row in server.history] == [(0, 1.0), (1, 1 / 2), (2, 1 / 3), (3, 1 / 4)]


def test_logged_in_by_netrc(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine {server.url[7:]}\n login user\n password {'a' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    process = start("print(choose_mode(folder).name)", tmp_path / "study", tmp_path, WANDB_BASE_URL=server.url)
    assert output(process) == "online\n"


def test_not_logged_in_is_offline_and_says_how_to_upload(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    text = output(start(MIRROR_ONE_RUN, folder, tmp_path, WANDB_BASE_URL=server.url))
    assert text == (
        "offline W&B logs offline (no W&B login found). "
        f"To upload: `wandb login`, then `wandb sync {folder / 'wandb'}`.\n"
    )
    assert server.runs == []
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
    text = output(start(MIRROR_ONE_RUN, folder, tmp_path, WANDB_BASE_URL=closed_url, WANDB_API_KEY="a" * 40))
    assert time.perf_counter() - began < 12
    assert text.startswith(f"offline W&B logs offline (Failed to authenticate with {closed_url}")
    assert epochs(folder) == [0, 1, 2, 3]


@pytest.mark.slow
def test_an_online_run_whose_server_is_gone_is_a_warning_within_seconds(closed_url: str, tmp_path: Path) -> None:
    code = """
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with log_run(labels, config={}, folder=folder, mode="online") as run:
                run.log({"epoch": 1})
                run.summary({"a": 1})
        print(len(caught), caught[0].message, run.handle)
        assert time.perf_counter() - start < 14
        """
    text = output(start(code, tmp_path / "study", tmp_path, WANDB_BASE_URL=closed_url, WANDB_API_KEY="a" * 40))
    assert text.startswith("1 W&B run study-00007: could not start online (")
    assert text.endswith("the run goes on without W&B None\n")


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
