from pathlib import Path

import pytest
import torch

from lightning_compress.export import onnx, packed, runtime, verify
from tests.contract import cases

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


@pytest.mark.parametrize(
    "name",
    [
        cases.ALL,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in cases.CASES
            if name != cases.ALL and name not in cases.ROWS.keys() & cases.SUBSETS.keys()
        ),
    ],
)
def test_onnx_computes_what_the_model_computes(name: str, tmp_path: Path) -> None:
    found = cases.finalized(name)
    path = onnx.export(found, cases.probe()[:2], tmp_path / "model.onnx")
    distance = verify.compare(found.model, runtime.session(path), cases.probe())
    verify.check(distance, verify.tolerance(found.model))
    assert distance["agreement"] >= 0.95
