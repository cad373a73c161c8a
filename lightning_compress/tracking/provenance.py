"""Where a number came from: commit, versions, device, threads and time."""

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "lightning-compress",
    "torch",
    "pytorch-lightning",
    "torchmetrics",
    "optuna",
    "wandb",
    "hydra-core",
    "datasets",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "numpy",
)
_CODE = ("--", ":/", ":(top,exclude)reports")
_CPU_INFO = Path("/proc/cpuinfo")


def provenance(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """Everything that a result must carry to be traced and run again, as JSON data; the host name is left out.

    Keys: `time` (UTC, ISO 8601), `commit` and `dirty` (of the git repository that holds `folder`, by default this
    package's own; None where there is no repository, no commit or no git; `dirty` counts tracked files only, and none
    in its folder `reports`, where runs leave records and pages), `versions` (None for a package that is not installed),
    `python`, `platform`, `device`, `threads`.

    Example:
        >>> record = provenance()
        >>> record["versions"]["torch"] == torch.__version__
        True
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changes = None if commit is None else _git(folder, "status", "--porcelain", "--untracked-files=no", *_CODE)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": None if changes is None else changes != "",
        "versions": {package: _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    """Model name of this machine's processor, or its architecture where the system does not tell.

    Example:
        >>> cpu_name() != ""
        True
    """
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None where git is missing, slow or refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
