"""Trusted Pareto fronts of compressed networks: accuracy, bytes on disk, measured latency."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_compress.callback import Compress as Compress
    from lightning_compress.distill.adversarial import Adversarial as Adversarial
    from lightning_compress.distill.hint import Hint as Hint
    from lightning_compress.distill.method import Distill as Distill
    from lightning_compress.distill.mutual import Mutual as Mutual
    from lightning_compress.distill.own import OwnTeacher as OwnTeacher
    from lightning_compress.distill.reuse import ReuseClassifier as ReuseClassifier
    from lightning_compress.distill.teacher import Teacher as Teacher
    from lightning_compress.lowrank.method import LowRank as LowRank
    from lightning_compress.module import CompressionModule as CompressionModule
    from lightning_compress.prune.method import Prune as Prune
    from lightning_compress.quantize.method import Quantize as Quantize
    from lightning_compress.run.api import compress as compress
    from lightning_compress.run.api import load as load
    from lightning_compress.share.method import Share as Share
    from lightning_compress.share.tie import Tie as Tie
    from lightning_compress.slim.method import Slim as Slim
    from lightning_compress.sweep.record import pareto as pareto

__all__ = [
    "Adversarial",
    "Compress",
    "CompressionModule",
    "Distill",
    "Hint",
    "LowRank",
    "Mutual",
    "OwnTeacher",
    "Prune",
    "Quantize",
    "ReuseClassifier",
    "Share",
    "Slim",
    "Teacher",
    "Tie",
    "compress",
    "load",
    "pareto",
]

# Read when asked for (PEP 562): importing the package alone takes no torch.
_HOMES = {
    "Adversarial": "distill.adversarial",
    "Compress": "callback",
    "CompressionModule": "module",
    "Distill": "distill.method",
    "Hint": "distill.hint",
    "LowRank": "lowrank.method",
    "Mutual": "distill.mutual",
    "OwnTeacher": "distill.own",
    "Prune": "prune.method",
    "Quantize": "quantize.method",
    "ReuseClassifier": "distill.reuse",
    "Share": "share.method",
    "Slim": "slim.method",
    "Teacher": "distill.teacher",
    "Tie": "share.tie",
    "compress": "run.api",
    "load": "run.api",
    "pareto": "sweep.record",
}


def __getattr__(name: str) -> Any:
    """A public name, from the file that defines it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
