import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_compress.core import select
from tests.contract import cases, distributed

ROOT = Path(__file__).parents[2]
# The last forward pass moves these on each rank by its own batch; the next one starts from rank 0's.
LOCAL = ("running_mean", "running_var", ".seen")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ranks")]  # the two processes run once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ddp")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(Path(__file__).with_name("distributed.py")), str(found)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return found


def _ranks(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True)[kind] for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["module", "callback"])
def test_ranks_end_with_the_same_weights_masks_and_ranges(folder: Path, kind: str) -> None:
    first, second = (rank["state"] for rank in _ranks(folder, kind))
    differing = [where for where in cases.differences(first, second) if not where.endswith(LOCAL)]
    assert differing == []
    masks = {key: value for key, value in first.items() if key.endswith(".mask")}
    assert len(masks) >= 6
    assert all(0 < value.count_nonzero() < value.numel() for value in masks.values())
    codes, centroids = ([v for k, v in first.items() if k.endswith(end)] for end in (".codes", ".centroids"))
    assert [len(values.unique()) for values in (*codes, *centroids)] == [8] * 6
    ranges = [value for key, value in first.items() if key.endswith(".range")]
    assert len(ranges) == 3
    assert all(low < high for low, high in ranges)


@pytest.mark.parametrize("kind", distributed.KINDS)
def test_ranks_end_alike_with_every_kind_of_network(folder: Path, kind: str) -> None:
    first, second = (rank["state"] for rank in _ranks(folder, kind))
    assert [where for where in cases.differences(first, second) if not where.endswith(LOCAL)] == []
    net = distributed.KINDS[kind][0]()
    weights = select.weights(net, owner="contract")
    masks = [value for key, value in first.items() if key.endswith(".mask") and value.dim() > 1]
    assert len(masks) >= len(weights)
    assert all(0 < value.count_nonzero() < value.numel() for value in masks)
    codes, centroids = ([v for k, v in first.items() if k.endswith(end)] for end in (".codes", ".centroids"))
    assert len(codes) == len(centroids) == len(weights)
    assert all(len(values.unique()) == 8 for values in codes)
    ranges = [value for key, value in first.items() if key.endswith(".range")]
    assert len(ranges) == len(select.readers(weights.values()))
    assert all(low < high for low, high in ranges)
    terms = [rank["terms"] for rank in _ranks(folder, kind)]
    assert len(terms[0]) == distributed.STEPS
    assert terms[0] != terms[1]  # each of its own batch


def test_ranks_end_with_the_same_learned_steps(folder: Path) -> None:
    first, second = (rank["state"] for rank in _ranks(folder, "learned"))
    assert [where for where in cases.differences(first, second) if not where.endswith(LOCAL)] == []
    learned = [key for key in first if key.endswith((".scale", ".offset", ".alpha", ".positive", ".negative"))]
    assert len(learned) == 2 + 2 * 2 + 1 + 2
    assert all(bool(first[key].isfinite()) for key in learned)
    (freeze,) = (value for key, value in first.items() if key.endswith("methods.2._extra_state"))  # FromData is first
    assert freeze["felt"].keys() == {"0", "3", "9"}
    assert len(freeze["frozen"]) == 2


def test_ranks_end_with_the_same_hints_and_banks(folder: Path) -> None:
    first, second = (rank["state"] for rank in _ranks(folder, "learned"))  # alike, by the test before
    hints = {key.partition(".hints.")[2] for key in first if ".hints." in key}
    assert {key[:7] for key in hints} == {f"{hint}.parts" for hint in range(3)}
    banks = [state["compressor.methods.5.hints.2.parts.0._extra_state"] for state in (first, second)]
    assert cases.differences(*banks) == []
    assert int((banks[0]["labels"] >= 0).sum()) > 100  # of two ranks' batches, 16 samples each, in six steps
    epochs = _ranks(folder, "learned")[0]["epochs"]
    assert all(row[f"train/hint/{name}"] > 0 for row in epochs for name in ("fit", "factor", "crd"))
    weights = [row[f"train/balance/hint/{name}"] for row in epochs for name in ("fit", "factor", "crd")]
    assert 1.0 not in weights  # learned


def test_ranks_end_with_the_same_layers_in_other_forms(folder: Path) -> None:
    first, second = (rank["state"] for rank in _ranks(folder, "forms"))
    snapshots = [state["compressor.methods.5.dynamics._extra_state"]["snapshot"] for state in (first, second)]
    assert "1.running_mean" in snapshots[0]
    assert cases.differences(*snapshots) == []
    assert [where for where in cases.differences(first, second) if not where.endswith(LOCAL)] == []
    peers = [key for key in first if key.startswith("compressor.methods.7.peers.0.")]
    heads = [key for key in first if key.startswith("compressor.methods.8.classifiers.0.")]
    assert len(peers) == len(cases.conv_net().state_dict())
    assert len(heads) == 3 * 1 + 3 * 5 + 2
    assert all(row["train/reuse"] > 0 for row in _ranks(folder, "forms")[0]["epochs"])
    # The substitute is no. 3, behind its shuffle; the linear projector is two.
    latent = {key: tuple(value.shape) for key, value in first.items() if key.endswith("weight.original")}
    assert latent["model.3.1.parametrizations.weight.original"] == (12, 4, 3, 3)
    assert latent["model.9.projector.0.parametrizations.weight.original"] == (3, 48)


def _discriminator(state: dict[str, Any]) -> dict[str, Any]:
    (found,) = (value for value in state.values() if isinstance(value, dict) and "discriminator" in value)
    return found


@pytest.mark.parametrize("kind", ["module", "callback", "averaged"])
def test_ranks_end_with_the_same_discriminator(folder: Path, kind: str) -> None:
    first, second = (_discriminator(rank["state"]) for rank in _ranks(folder, kind))
    assert cases.differences(first, second) == []
    assert first["health"]["count"] == 6
    if kind == "averaged":
        alone = _discriminator(torch.load(folder / "alone.pt", weights_only=True)["state"])
        for (weights, _), (others, _) in zip(
            first["discriminator"]["parts"], alone["discriminator"]["parts"], strict=True
        ):
            torch.testing.assert_close(weights, others, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(first["health"]["mean"], alone["health"]["mean"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["module", "callback"])
def test_the_extra_term_is_there_on_each_rank_and_of_its_own_batch(folder: Path, kind: str) -> None:
    first, second = (rank["terms"] for rank in _ranks(folder, kind))
    assert len(first) == len(second) == 6
    assert min(*first, *second) > 1e-4
    assert first != second


def test_the_curve_is_the_mean_over_ranks(folder: Path) -> None:
    first, second = _ranks(folder, "module")
    assert first["epochs"] == second["epochs"]
    terms = torch.tensor([first["terms"], second["terms"]])
    means = [row["train/distill"] for row in first["epochs"]]
    torch.testing.assert_close(torch.tensor(means), terms.reshape(2, 2, 3).mean((0, 2)))


def test_two_ranks_with_half_a_batch_are_one_with_a_whole_one(folder: Path) -> None:
    alone = torch.load(folder / "alone.pt", weights_only=True)
    for rank in _ranks(folder, "averaged"):
        for key, value in alone["state"].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(rank["state"][key], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            torch.tensor([row["train/loss"] for row in rank["epochs"]]),
            torch.tensor([row["train/loss"] for row in alone["epochs"]]),
        )


def test_the_checkpoint_holds_each_ranks_own_generators(folder: Path) -> None:
    states = torch.load(folder / "module2.ckpt", weights_only=True)["rng"]
    assert len(states) == 2
