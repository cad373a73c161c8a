"""Where the bytes of a shared network go in Deep Compression's layout (arXiv 1510.00149): what table 1 to 3 ask for.

    lightning-compress table deep_compression --only lenet_300_100_shared lenet_5_shared --seeds 0
    python benchmarks/layout.py runs/tables/deep_compression/lenet_*_shared/seed0/model.lcz

Of each layer: weights kept, the share of entries that are zeros filling a distance beyond 5 bits, and the entropy of
codes and of distances in bits, which no code of symbol after symbol falls below. Goes to `reports/records/layout.json`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_compress.cost.layout import INDEX_BITS
from lightning_compress.export import packed
from lightning_compress.tracking.provenance import provenance

RECORD = Path("reports/records/layout.json")
REACH = 1 << INDEX_BITS


def entropy(symbols: NDArray[np.generic]) -> float:
    """Bits a symbol, of the shares with which each occurs."""
    _, counts = np.unique(symbols, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def layer(weights: NDArray[np.float32]) -> dict[str, float]:
    """The figures of one layer."""
    flat = weights.reshape(-1)
    kept = np.flatnonzero(flat)
    distances = np.diff(kept, prepend=-1) - 1
    fillers = int((distances // REACH).sum())
    codes = np.concatenate([flat[kept], np.zeros(fillers, np.float32)])
    told = np.concatenate([distances % REACH, np.full(fillers, REACH - 1)])
    return {
        "kept": len(kept),
        "filled": fillers / len(codes),
        "code_bits": int(np.ceil(np.log2(len(np.unique(np.append(flat, 0)))))),
        "code_entropy": entropy(codes),
        "distance_entropy": entropy(told),
    }


def main() -> None:
    """Write the record of the files given, and print it."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("files", nargs="+", type=Path)
    found = {}
    for path in parser.parse_args().files:
        tensors = packed.read(path).tensors
        shared = {name: layer(each.value.numpy()) for name, each in tensors.items() if each.levels is not None}
        plain = sum(4 * each.value.numel() for each in tensors.values() if each.levels is None)
        values = sum(4 << int(each["code_bits"]) for each in shared.values())
        entries = sum(
            each["kept"] / (1 - each["filled"]) * (each["code_bits"] + INDEX_BITS) for each in shared.values()
        )
        weights = sum(4 * each.value.numel() for each in tensors.values() if each.levels is not None)
        found[path.parts[-3]] = {
            "layers": shared,
            "bytes": {"entries": round(entries / 8), "values": values, "biases": plain},
            "times_smaller_by_entries_alone": weights * 8 / entries,
        }
    RECORD.write_text(json.dumps({"provenance": provenance(), "networks": found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
