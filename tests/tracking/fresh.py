"""Code in a process of its own: W&B keeps the login and its settings for the whole process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning_compress

ROOT = Path(lightning_compress.__file__).parent.parent
HEAD = """
import os, sys, time, warnings
from pathlib import Path
from lightning_compress.tracking.wandb import *
from lightning_compress.tracking.sync import sync
folder = Path({folder!r})
labels = Labels(project="digits", id="study-00007", name="trial 7", group="study", job_type="trial", tags=("kd",))
"""


def start(code: str, folder: Path, home: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start `code` with a home of its own and nothing else in the environment; it finds `folder` and `labels`."""
    inherited = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-c", HEAD.format(folder=str(folder)) + textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=inherited | {"HOME": str(home)} | environment,
    )


def output(process: "subprocess.Popen[str]", patience: float = 120) -> str:
    """What the process wrote, when it ended well within `patience` seconds."""
    text, _ = process.communicate(timeout=patience)
    assert process.returncode == 0, text
    return text
