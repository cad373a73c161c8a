"""Trained networks on every runtime of this machine, with NNCF's int8 of the first beside them.

    lightning-compress train experiment=deploy/resnet20_dense speed.compile=true    # then resnet20_int8, resnet20_joint
    python benchmarks/deploy.py runs/deploy/resnet20_dense runs/deploy/resnet20_int8 runs/deploy/resnet20_joint \
        --record reports/records/deploy/resnet20.json      # needs LIGHTNING_COMPRESS_DATA and pip install openvino nncf

All networks and runtimes are timed in turn, round by round, in one process; ratios are to the first folder's network
in eager PyTorch in the same rounds. The test split is read once by each network on each runtime at the largest batch:
what integer kernels lose to overflow shows there. Where a run had neither epochs nor start weights, all are only timed.
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_compress.export import chooser, latency, runtime
from lightning_compress.run import api, build
from lightning_compress.run.result import Result
from lightning_compress.tracking.provenance import provenance

Session = Callable[[NDArray[Any]], NDArray[Any]]
Key = tuple[str, str]
CALIBRATION = 300  # NNCF's own default


def sessions(folders: list[Path], runtimes: list[chooser.Runtime], threads: int) -> dict[Key, Session]:
    """Each network on each runtime, by both names."""
    opened = {}
    for folder in folders:
        compact, _ = api.unpack(folder / "model.lcz")
        model = chooser.Deployable(folder / "model.onnx", compact)
        for one in runtimes:
            if one.needs != "integers" or model.has_integers:
                opened[folder.name, one.name] = one.open(model, threads)
    return opened


def nncf_int8(dense: Path, samples: NDArray[Any], sizes: list[int], threads: int) -> Session:
    """The dense network after NNCF's post-training quantization, with its default settings, on OpenVINO."""
    import nncf
    import openvino

    model = openvino.Core().read_model(dense)
    made = nncf.quantize(model, nncf.Dataset([sample[None] for sample in samples]), subset_size=len(samples))
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    opened = {}
    for size in sizes:  # as export/openvino.py does it: compiled for one shape each
        of_size = made.clone()
        of_size.reshape([size, *samples.shape[1:]])
        opened[size] = openvino.Core().compile_model(of_size, "CPU", options).create_infer_request()
    return lambda batch: np.asarray(opened[len(batch)].infer([batch], share_inputs=True)[0])


def accuracy(session: Session, batches: list[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[float, float]:
    """Share of right answers, and its standard error."""
    right = np.concatenate([session(x).argmax(1) == y for x, y in batches])
    share = float(right.mean())
    return share, math.sqrt(share * (1.0 - share) / len(right))


def test_split(config: dict[str, Any], size: int) -> tuple[Any, list[tuple[NDArray[Any], NDArray[Any]]]]:
    """The data of a run, and its test split in batches of one size; what is left over at the end is left out."""
    data = build.data(config)
    parts = [(x.numpy(), y.numpy()) for x, y, *_ in data.test_dataloader()]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    return data, [(x[at : at + size], y[at : at + size]) for at in range(0, len(x) - size + 1, size)]


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs, the dense one first")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino", "torch"])
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args()
    results = [Result.load(folder) for folder in asked.folders]
    runtimes = chooser.here(asked.runtimes)
    data, batches = test_split(results[0].config, max(asked.batch_sizes))
    opened = sessions(asked.folders, runtimes, asked.threads)
    first = asked.folders[0].name
    calibration = np.concatenate([x.numpy() for x, *_ in data.val_dataloader()])[:CALIBRATION]
    opened[f"{first}, NNCF int8", "openvino/f32"] = nncf_int8(
        asked.folders[0] / "model.onnx", calibration, asked.batch_sizes, asked.threads
    )
    trained = all(result.config["epochs"] or result.config["weights"] for result in results)
    rows = {key: {"accuracy": accuracy(session, batches)} if trained else {} for key, session in opened.items()}
    for size in asked.batch_sizes:
        inputs = batches[0][0][:size].copy()
        found = latency.measure(
            {key: partial(session, inputs) for key, session in opened.items()},
            reference=(first, "torch/eager"),
            bench=latency.Bench("", runtime.device_name(), asked.threads, size),
            rounds=asked.rounds,
        )
        for key, one in found.items():
            rows[key][f"batch {size}"] = {"ms": one.median_ms, "times_faster": 1.0 / one.ratio}
    for (network, on), row in rows.items():
        right = "{:.2%} ± {:.2%}".format(*row["accuracy"]) if trained else ""
        timed = [row[f"batch {size}"] for size in asked.batch_sizes]
        times = "  ".join(f"{one['ms']:8.2f} ms {one['times_faster']:5.2f}x" for one in timed)
        print(f"{network:32s} {on:20s} {times}  {right}")
    if asked.record:
        costs = {result.name: {"metrics": result.metrics, "cost": result.cost} for result in results}
        table = [{"network": network, "runtime": on, **row} for (network, on), row in rows.items()]
        asked.record.parent.mkdir(parents=True, exist_ok=True)
        record = {"table": table, "runs": costs, "provenance": provenance()}
        asked.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
