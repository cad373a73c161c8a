"""Numbers of a finalized model, all from the files that were written and the tensors in them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_compress.core import shrunk
from lightning_compress.core.compressor import read_stored
from lightning_compress.core.inputs import call, device_of, rows
from lightning_compress.core.method import Compact
from lightning_compress.core.task import Task
from lightning_compress.cost.bops import bops, relative_bops
from lightning_compress.cost.layout import layout_bytes
from lightning_compress.cost.params import num_nonzeros, num_params
from lightning_compress.cost.record import LayerCost, layer_table, operands
from lightning_compress.export import chooser, files, onnx, packed
from lightning_compress.run import priced, ranks

PACKED, ONNX, DENSE, WEIGHTS = files.PACKED, files.ONNX, "dense.onnx", shrunk.WEIGHTS


@final
@dataclass(frozen=True)
class Timing:
    """How latency is measured: beside which dense ONNX file, on how many samples and threads, how often; or not.

    Each of the two files counts with the fastest of `runtimes`, names that `chooser.here` knows.

    With a `table` it is predicted from that file; the dense network's ONNX file is then there from the start.
    Without `latency`, `onnx` says whether the files to time later are written and checked.
    """

    reference: Path | None = None
    batch_size: int = 64
    threads: int = 1
    rounds: int = 30
    latency: bool = True
    onnx: bool = True
    runtimes: Sequence[str] = chooser.DEFAULT
    table: Path | None = None


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Any], task: Task, split: str) -> dict[str, float]:
    """Loss and metrics of `model` in eval mode over `batches` of (inputs, targets, ...), named `<split>/<metric>`.

    Of several processes each takes its own share of the batches, and all return the numbers of the whole.
    """
    metrics = task.metrics()
    for metric in metrics.values():
        metric.sync_on_compute = False  # every process is shown all outputs
    total, count = 0.0, 0
    training = model.training
    model.eval()
    for inputs, targets, *_ in batches:
        model.to(device_of(inputs))
        outputs = call(model, inputs)
        loss = float(task.loss(outputs, targets)) * len(targets)
        for part, right, of_part in ranks.gathered((tree_map(Tensor.cpu, outputs), targets.cpu(), loss)):
            metrics.update(part, right)
            total += of_part
            count += len(right)
    model.cpu().train(training)
    if not count:
        raise ValueError(f"the {split} split yields no batch; expected at least one")
    return {f"{split}/loss": total / count, **{f"{split}/{k}": float(v) for k, v in metrics.compute().items()}}


def costs(
    compact: Compact, base: nn.Module, example: Any, written: packed.Packed
) -> tuple[dict[str, Any], list[LayerCost]]:
    """Counts and bytes of the deployed model, in total and by layer; `dense_bytes` is the base network's in float32."""
    rows = layer_table(compact.model, compact.stored, example, written.bytes_per_tensor)
    macs, *bits = operands(compact.model, compact.stored, [row for row in rows if row.macs])
    weights = [compact.stored[name].value for name, _ in compact.model.named_parameters() if name in compact.stored]
    params, nonzeros = num_params(compact.model), num_nonzeros(weights)
    layouts = {
        "indexed_bytes": layout_bytes(compact.stored, coded=False),
        "huffman_bytes": layout_bytes(compact.stored, coded=True),
    }
    return {
        "params": params,
        "nonzeros": nonzeros,
        "sparsity": 1.0 - nonzeros / max(1, params),
        "macs": sum(macs.values()),
        "bops": bops(macs, *bits),
        "relative_bops": relative_bops(macs, *bits),
        "packed_bytes": written.header_bytes + sum(written.bytes_per_tensor.values()),
        "dense_bytes": 4 * num_params(base),
        **{name: size for name, size in layouts.items() if size is not None},
    }, rows


def count(compact: Compact, base: nn.Module, example: Any, architecture: dict[str, Any] | None) -> dict[str, Any]:
    """Counts and bytes as `costs` gives them, of a model whose packed file nobody wants."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / PACKED
        packed.write(compact, path, architecture=files.about(architecture, example))
        return costs(compact, base, rows(example, slice(1)), packed.read(path))[0]


def export_dense(model: nn.Module, example: Any, path: Path) -> Path:
    """Write the uncompressed float network as ONNX, to be timed beside the compressed one."""
    return onnx.export(Compact(model.eval(), read_stored(model)), example, path)


def side_by_side(models: Mapping[str, Path], inputs: Any, timing: Timing) -> chooser.Race:
    """Latency of ONNX files in milliseconds per batch, all in one call, each on every one of the runtimes asked for."""
    found = {name: chooser.Deployable(path) for name, path in models.items()}
    batch = tree_map(lambda each: np.resize(each.numpy(), (timing.batch_size, *each.shape[1:])), inputs)
    runtimes = chooser.here(timing.runtimes)
    return chooser.race(found, runtimes, batch, threads=timing.threads, rounds=timing.rounds)


def time_beside(dense: Path, model: Path, inputs: Any, timing: Timing) -> dict[str, Any]:
    """Latency of an ONNX file beside the dense one, as a Result's cost has it: each on its own fastest runtime.

    Where a runtime could not run one of them or ran it wrongly, `runtimes_left_out` says so.
    """
    found = side_by_side({"dense": dense, "model": model}, inputs, timing)
    ours = asdict(found.fastest("model"))
    left_out = "; ".join(f"{runtime} ({of}): {why}" for (of, runtime), why in found.left_out.items())
    return {
        "latency_ms": ours.pop("median_ms"),
        "latency_p10_ms": ours.pop("p10_ms"),
        "latency_p90_ms": ours.pop("p90_ms"),
        "latency_ratio": ours.pop("ratio"),
        "latency_rounds": ours.pop("rounds"),
        "dense_latency_ms": found.fastest("dense").median_ms,
        "dense_runtime": found.fastest("dense").runtime,
        **ours,
        **({"runtimes_left_out": left_out} if left_out else {}),
    }


def measure(
    compact: Compact,
    make: Callable[[], nn.Module],
    inputs: Any,
    folder: Path,
    *,
    architecture: dict[str, Any] | None,
    timing: Timing,
) -> tuple[dict[str, str], dict[str, float], dict[str, Any], list[dict[str, Any]]]:
    """Write, check, count and time: names of the files, what the checks saw, the costs, the per-layer table.

    `make` builds the base network; `inputs` are real samples, each [number, ...], on the CPU.
    """
    written = files.write_packed(compact, make(), inputs, folder / PACKED, architecture)
    shrunk.save(compact, folder)
    cost, table = costs(compact, make(), rows(inputs, slice(1)), written)
    found, checks = {"packed": PACKED, "weights": WEIGHTS, "edits": shrunk.EDITS}, {}
    if timing.onnx or timing.latency:
        checks = files.write_onnx(compact, inputs, folder / ONNX)
        own = folder / DENSE
        dense = timing.reference or (own if timing.table else export_dense(make(), rows(inputs, slice(2)), own))
        found["onnx"] = ONNX
        if timing.latency and timing.table:
            cost |= priced.price_beside(dense, folder / ONNX, priced.table_of(asdict(timing)))
        elif timing.latency:
            cost |= time_beside(dense, folder / ONNX, inputs, timing)
    return found, checks, cost, [{**asdict(row), "shape": list(row.shape)} for row in table]
