"""Real clusters and servers on this machine for as long as a `with` block lasts; a test that needs one that cannot be
made here is skipped."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
# Whether `ray start` asks for one depends on what earlier ones left in the home folder, unless it is told. A process
# knows one token for all clusters that it joins.
_TOKEN = secrets.token_hex(32)


@contextmanager
def slurm() -> Iterator[Path]:
    """A Slurm of one node with four CPUs, and SLURM_CONF set; its folder."""
    with _scripted("slurm.sh") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server; the URL of its database."""
    with _scripted("postgres.sh") as folder:
        yield (folder / "url").read_text().strip()


@contextmanager
def ray() -> Iterator[str]:
    """A Ray of four CPUs, and RAY_ADDRESS set; its address."""
    program = Path(sys.executable).with_name("ray")
    if not program.exists():
        pytest.skip("Ray is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")
    command = [str(program), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    command += ["--num-cpus=4", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
    asked = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    with open(Path(folder, "out"), "w") as out:
        head = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=os.environ | asked)
    try:
        _started(head, Path(folder, "out"))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"RAY_ADDRESS": f"127.0.0.1:{port}", **asked}.items():
                patch.setenv(name, value)
            yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _started(head: "subprocess.Popen[bytes]", out: Path) -> None:
    end = time.monotonic() + 60
    while "Ray runtime started" not in out.read_text():
        assert head.poll() is None, out.read_text()
        assert time.monotonic() < end, out.read_text()
        time.sleep(0.2)


@contextmanager
def _scripted(script: str) -> Iterator[Path]:
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"{script} needs root on Debian")
    folder = Path(tempfile.mkdtemp(prefix="cluster-"))
    folder.chmod(0o755)
    started = subprocess.run([_HERE / script, "start", folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        if started.returncode != 0:
            pytest.skip(f"{script} did not start: {started.stderr.decode()[-500:]}")
        yield folder
    finally:
        subprocess.run([_HERE / script, "stop", folder], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder)
