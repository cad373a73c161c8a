from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_compress.export import onnx, packed, runtime, verify
from tests.contract import cases, nets

every_case = cases.each(cases.CASES)


@every_case
def test_the_packed_file_gives_back_every_bit(name: str, tmp_path: Path) -> None:
    found = cases.finalized(name)
    size = packed.write(found, tmp_path / "model.lcz")
    back = packed.read(tmp_path / "model.lcz")
    assert size == (tmp_path / "model.lcz").stat().st_size == back.header_bytes + sum(back.bytes_per_tensor.values())
    for key, stored in back.tensors.items():
        assert torch.equal(stored.value, found.stored[key].value), key
        assert stored.bits == found.stored[key].bits, key
    rebuilt = packed.rebuild(back, cases.CASES[name].net())
    assert torch.equal(cases.outputs(rebuilt), cases.outputs(found.model))


@pytest.mark.slow
def test_what_was_compressed_is_smaller_on_disk(tmp_path: Path) -> None:
    sizes = {name: packed.write(cases.finalized(name), tmp_path / "model.lcz") for name in cases.SUBSETS}
    dense = sizes["none"]
    assert sizes["distill"] == pytest.approx(dense, abs=8)
    assert sizes["prune"] < 0.65 * dense
    assert sizes["quantize"] < 0.4 * dense
    assert sizes["share"] < 0.35 * dense
    assert sizes["prune+share"] < min(sizes["prune"], sizes["share"])
    assert sizes["prune+quantize"] < min(sizes["prune"], sizes["quantize"])
    assert sizes["channel+quantize"] < min(sizes["channel"], sizes["quantize"])


def _exported() -> Iterator[Any]:
    """What is not the same file but for the numbers in it: of a teacher nothing is left there."""
    for name in cases.CASES:
        # Of recurrent ones `text_lstm` stands for all.
        if name in cases.WHOLE and name not in cases.RECURRENT and not name.startswith("text_gru"):
            yield name
        elif name.partition(":")[0] not in cases.KINDS or "distill" not in name:
            yield pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize("name", list(_exported()))
def test_onnx_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    """For networks of texts the one file takes texts of any length, padded or not."""
    found = cases.finalized(name)
    batches = [cases.probe()]
    if isinstance(found.model, nets.Reads):
        batches = [nets.text_of(batches[0]), *map(nets.texts, (1, 7, nets.LONGEST))]
    opened = runtime.session(onnx.export(found, batches[0][:2], tmp_path / "model.onnx"))
    for batch in batches:
        distance = verify.compare(found.model, opened, batch)
        verify.check(distance, verify.tolerance(found.model))
        assert distance["agreement"] >= 0.95
        if isinstance(found.model, nets.Reads):  # no agreement on what is the same for every text
            assert found.model(batch).std(0).mean() > 10 * distance["mean_error"]


@pytest.mark.parametrize("name", [name for name in cases.WHOLE if isinstance(cases.CASES[name].net(), nets.Reads)])
def test_padding_changes_nothing(name: str) -> None:
    model, short = cases.finalized(name).model, nets.texts(7)
    padded = torch.cat([short, torch.zeros(len(short), 9, dtype=torch.int64)], 1)
    torch.testing.assert_close(model(padded), model(short), rtol=1e-4, atol=1e-4)
