"""Trusted Pareto fronts of compressed networks: accuracy, bytes on disk, measured latency."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_compress.callback import Compress as Compress
    from lightning_compress.distill.method import Distill as Distill
    from lightning_compress.lowrank.method import LowRank as LowRank
    from lightning_compress.module import CompressionModule as CompressionModule
    from lightning_compress.prune.method import Prune as Prune
    from lightning_compress.quantize.method import Quantize as Quantize
    from lightning_compress.run.api import compress as compress
    from lightning_compress.run.api import load as load
    from lightning_compress.share.tie import Tie as Tie
    from lightning_compress.slim.method import Slim as Slim
    from lightning_compress.sweep.record import pareto as pareto

__all__ = [
    "Compress",
    "CompressionModule",
    "Distill",
    "LowRank",
    "Prune",
    "Quantize",
    "Slim",
    "Tie",
    "compress",
    "load",
    "pareto",
]

# Read when asked for (PEP 562): importing the package alone takes no torch.
_HOMES = {
    "Compress": "callback",
    "CompressionModule": "module",
    "Distill": "distill.method",
    "LowRank": "lowrank.method",
    "Prune": "prune.method",
    "Quantize": "quantize.method",
    "Slim": "slim.method",
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
