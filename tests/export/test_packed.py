import json
import math
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_compress.coding.paper import encode_layer
from lightning_compress.core import surgery
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.method import Compact
from lightning_compress.core.stored import Stored
from lightning_compress.export import packed
from lightning_compress.export.packed import read, rebuild, write
from lightning_compress.models.mlp import lenet_300_100

Build = Callable[[dict[str, Any]], nn.Module]
ARCHITECTURE = {"name": "net", "width": 8}


@pytest.fixture
def file(compact: Compact, tmp_path: Path) -> Path:
    write(compact, tmp_path / "model.lcz", architecture=ARCHITECTURE)
    return tmp_path / "model.lcz"


def forge(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A file whose checksum is right, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=packed._WORDS)
    short = deflate.compress(text) + deflate.flush()
    rest = struct.pack("<I", len(short)) + short + data
    return packed.MAGIC + struct.pack("<BI", packed.VERSION, zlib.crc32(rest)) + rest


def test_outputs_are_bit_identical_in_a_fresh_model(compact: Compact, file: Path, inputs: Tensor, build: Build) -> None:
    model = rebuild(read(file), build=build)
    assert not model.training
    assert torch.equal(model(inputs), compact.model(inputs))
    assert model.state_dict().keys() == compact.model.state_dict().keys()


def test_a_base_model_serves_too_and_stays_as_it_is(compact: Compact, file: Path, inputs: Tensor, build: Build) -> None:
    base = build(ARCHITECTURE)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    assert torch.equal(rebuild(read(file), base)(inputs), compact.model(inputs))
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_counts_of_batch_norm_come_back_as_zero(file: Path, build: Build) -> None:
    base = build(ARCHITECTURE)
    base.get_buffer("bn3.num_batches_tracked").fill_(7)
    assert "bn3.num_batches_tracked" not in read(file).tensors
    assert rebuild(read(file), base).get_buffer("bn3.num_batches_tracked").item() == 0


def test_codes_scales_masks_and_edits_come_back(compact: Compact, file: Path) -> None:
    back = read(file)
    assert back.architecture == ARCHITECTURE
    assert back.edits == compact.edits
    for name, stored in back.tensors.items():
        wanted = compact.stored[name]
        assert torch.equal(stored.value, wanted.value)
        assert torch.equal(stored.value, stored.dequantize())
        assert (stored.bits, stored.axis, stored.symmetric) == (wanted.bits, wanted.axis, wanted.symmetric)
        if stored.mask is not None:
            assert wanted.mask is not None
            assert torch.equal(stored.mask, wanted.mask)
        if stored.scale is not None and wanted.scale is not None:
            assert torch.equal(stored.scale, wanted.scale)
    assert back.quantizers["conv2"].bits == 4


def test_bytes_add_up_and_are_what_the_codes_take(compact: Compact, file: Path) -> None:
    back = read(file)
    sizes = back.bytes_per_tensor
    assert back.header_bytes + sum(sizes.values()) == file.stat().st_size
    # Never more than plain codes, scales and a byte or two for the way in which they are written.
    assert sizes["conv1.weight"] <= 8 * 9 + 1 + 8 * 4 + 1
    assert sizes["conv3.weight"] <= 8 * 16 * 9 * 2 // 8 + 1 + 8 * 4 + 1
    assert sizes["fc1.weight"] <= 32 * 128 + 1 + 4 + 2
    assert sizes["fc2.bias"] <= 40 + 1
    assert sizes["conv2.input_quantizer.scale"] == 4
    mask = compact.stored["conv2.weight"].mask
    assert mask is not None
    assert sizes["conv2.weight"] <= mask.numel() / 8 + int(mask.sum()) * 4 / 8 + 16 * 4 + 4


def test_write_returns_the_length_of_the_file(compact: Compact, tmp_path: Path) -> None:
    path = tmp_path / "model.lcz"
    assert write(compact, path) == path.stat().st_size


def test_header_is_a_small_part(file: Path) -> None:
    assert read(file).header_bytes < 400


def test_a_mask_that_costs_more_than_its_zeros_is_not_written(tmp_path: Path) -> None:
    net = nn.Linear(64, 8, bias=False).eval()
    mask = torch.ones(8, 64, dtype=torch.bool)
    mask[:, ::8] = False
    stored = Stored(net.weight.detach()).masked(mask).coded(torch.randint(-1, 2, (8, 64)), torch.tensor(0.5), bits=2)
    net.weight.data.copy_(stored.value)
    write(Compact(net, {"weight": stored}), tmp_path / "model.lcz")
    back = read(tmp_path / "model.lcz")
    assert back.bytes_per_tensor["weight"] < 8 * 64 * math.log2(3) / 8 + 4 + 8
    assert back.tensors["weight"].mask is None
    assert torch.equal(back.tensors["weight"].value, stored.value)


def shared(weight: Tensor) -> Stored:
    """Pruned to 8 % by magnitude, the rest rounded to 32 values."""
    kept = weight.abs() > weight.abs().flatten().kthvalue(round(0.92 * weight.numel())).values
    levels = torch.linspace(-1, 1, 32) ** 3 * weight.abs().max()
    codes = (weight[..., None] - levels).abs().argmin(-1)
    return Stored(weight).chosen(codes, levels).masked(kept)


def test_a_pruned_and_shared_lenet_is_smaller_than_in_the_layout_of_deep_compression(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = lenet_300_100().requires_grad_(False).eval()
    stored: dict[str, Stored] = {}
    layout = 0
    for name, value in net.named_parameters():
        value.normal_(std=0.05)
        stored[name] = Stored(value.clone()) if value.dim() < 2 else shared(value)
        value.copy_(stored[name].value)
        levels = stored[name].levels
        # Its codebook needs a zero, which takes the place of a value near it here.
        layout += 4 * value.numel() if levels is None else len(encode_layer(*with_zero(value, levels), index_bits=5))
    size = write(Compact(net, stored), tmp_path / "model.lcz", architecture={"model": {"num_classes": 10}})
    assert size < 0.87 * layout
    back = read(tmp_path / "model.lcz")
    assert back.header_bytes < 100
    assert size == back.header_bytes + sum(back.bytes_per_tensor.values()) == (tmp_path / "model.lcz").stat().st_size
    assert all(torch.equal(back.tensors[name].value, stored[name].value) for name in stored)


def with_zero(weight: Tensor, levels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    near = int(levels.abs().argmin())
    known = torch.cat([levels[:near], torch.zeros(1), levels[near + 1 :]]).numpy()
    value = weight.numpy()
    return np.where(value == levels[near].item(), 0, value).astype(np.float32), known


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_all_codes_of_all_widths_come_back(bits: int, symmetric: bool, tmp_path: Path) -> None:
    high = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    codes = torch.arange(-high if symmetric else 0, high + 1).repeat(3, 1)
    scale = torch.tensor([0.1, 0.7, 1e-8])
    zero = torch.zeros(3, dtype=torch.int32) if symmetric else torch.tensor([0, high, 1])
    net = nn.Linear(codes.shape[1], 3, bias=False).eval()
    stored = Stored(net.weight.detach()).coded(codes, scale, zero, bits=bits, axis=0, symmetric=symmetric)
    net.weight.data.copy_(stored.value)
    write(Compact(net, {"weight": stored}), tmp_path / "model.lcz")
    back = read(tmp_path / "model.lcz").tensors["weight"]
    assert torch.equal(back.value, stored.value)
    assert back.codes is not None
    assert torch.equal(back.codes, codes)


def test_integer_and_empty_tensors_come_back(tmp_path: Path) -> None:
    net = nn.Module()
    net.register_buffer("table", torch.tensor([[2**40, -1]]))
    net.register_buffer("flags", torch.tensor([True, False]))
    net.register_buffer("nothing", torch.zeros(0, 3))
    stored = {name: Stored(value.clone()) for name, value in net.named_buffers()}
    write(Compact(net, stored), tmp_path / "model.lcz")
    back = read(tmp_path / "model.lcz").tensors
    for name, value in net.named_buffers():
        assert back[name].value.dtype == value.dtype
        assert torch.equal(back[name].value, value)


def test_tied_tensors_are_written_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        second.weight = first.weight
        return nn.Sequential(first, second).eval()

    net, base = tied(), tied()
    stored = {"0.weight": Stored(net.get_parameter("0.weight").detach())}
    write(Compact(net, stored), tmp_path / "model.lcz")
    assert torch.equal(rebuild(read(tmp_path / "model.lcz"), base)(torch.ones(1, 3)), net(torch.ones(1, 3)))


def test_stored_that_is_not_the_model_is_refused(compact: Compact, tmp_path: Path) -> None:
    path = tmp_path / "model.lcz"
    fewer = {name: stored for name, stored in compact.stored.items() if name != "fc2.bias"}
    with pytest.raises(ValueError, match=r"differ in fc2\.bias"):
        write(replace(compact, stored=fewer), path)
    other = compact.stored | {"fc2.bias": Stored(torch.zeros(10))}
    with pytest.raises(ValueError, match=r"stored of 'fc2\.bias' is not what the model"):
        write(replace(compact, stored=other), path)
    assert not path.exists()


def test_what_would_not_be_read_is_not_written(tmp_path: Path) -> None:
    net = nn.Linear(2**12, 2**11, bias=False).eval()
    net.weight.data.zero_()
    mask = torch.zeros(2**11, 2**12, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"83886\d\d tensor entries declared in \d+ bytes, where at most 42\d+ are read"
    ):
        write(Compact(net, {"weight": Stored(net.weight.detach()).masked(mask)}), tmp_path / "model.lcz")
    assert not (tmp_path / "model.lcz").exists()


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    double = nn.Linear(2, 2, bias=False).double()
    with pytest.raises(ValueError, match=r"cannot pack 'weight': .* torch\.float64"):
        write(Compact(double, {"weight": Stored(double.weight.detach())}), tmp_path / "model.lcz")
    odd = nn.Sequential(FixedQuantizer(torch.tensor(1.0), torch.tensor(0), 0, 3))
    with pytest.raises(ValueError, match="must be a layer's input_quantizer"):
        write(Compact(odd, {n: Stored(b) for n, b in odd.named_buffers()}), tmp_path / "model.lcz")


def test_rebuild_says_what_is_missing_or_wrong(file: Path, build: Build) -> None:
    with pytest.raises(ValueError, match="pass base_model, or build"):
        rebuild(read(file))
    with pytest.raises(ValueError, match=r"not that of the file: 'bn1\.bias' has shape \(8,\), in the file None"):
        rebuild(replace(read(file), edits=[]), build({"width": 8}))


def test_quantizers_act_on_the_inputs_of_their_layers(file: Path, build: Build) -> None:
    model = rebuild(read(file), build=build)
    assert isinstance(getattr(model.get_submodule("fc1"), surgery.INPUT_CHILD), FixedQuantizer)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing.lcz")


@pytest.mark.parametrize("seed", range(60))
def test_random_damage_is_refused(seed: int, file: Path) -> None:
    rng = random.Random(seed)
    data = bytearray(file.read_bytes())
    if seed % 3 == 0:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif seed % 3 == 1:
        del data[rng.randrange(len(data)) :]
    else:
        start = rng.randrange(len(data))
        data[start : start + 8] = rng.randbytes(9)
    file.write_bytes(data)
    with pytest.raises(ValueError, match="not a sound compressed model"):
        read(file)


def test_another_version_is_named(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4] = 9
    file.write_bytes(data)
    with pytest.raises(ValueError, match="expected version 2, got 9: write the model again"):
        read(file)


SOUND: dict[str, Any] = {"a": None, "e": [], "t": [["w", [4]]], "q": []}
LIES: dict[str, dict[str, Any] | bytes] = {
    "shape": SOUND | {"t": [["w", [2**20]]]},
    "negative": SOUND | {"t": [["w", [-2, -2]]]},
    "enormous": SOUND | {"t": [["w", [2**40], {"m": 1}]]},
    "masked away": SOUND | {"t": [["w", [2**13, 2**13], {"m": 1}]]},
    "enormous but for a zero": SOUND | {"t": [["w", [2**60, 0], {"b": 8, "x": 0}]]},
    "mask length": SOUND | {"t": [["w", [999], {"m": 1}]]},
    "mask": SOUND | {"t": [["w", [4], {"m": ["pickle", 1]}]]},
    "bits": SOUND | {"t": [["w", [4], {"b": 40}]]},
    "no bits": SOUND | {"t": [["w", [4], {"b": 0}]]},
    "axis": SOUND | {"t": [["w", [4], {"b": 8, "x": 3}]]},
    "dtype": SOUND | {"t": [["w", [2], {"d": "O"}]]},
    "name": SOUND | {"t": [[3, [4]]]},
    "twice": SOUND | {"t": [["w", [2]], ["w", [2]]]},
    "quantizer": SOUND | {"t": [["w", [3]]], "q": [["w", 0, 255, 2**70]]},
    "zero point": SOUND | {"t": [["w", [3]]], "q": [["w", 0, 255, -1]]},
    "edits": SOUND | {"e": [3]},
    "edit index": SOUND | {"e": [{"kind": "keep", "index": "xyz"}]},
    "too little said": {"t": []},
    "not a dict": b"[1, 2]",
    "not json": b"{{{",
    "not text": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
    "bomb": b" " * 2**24,
    "too short": SOUND | {"t": [["w", [3]]]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    (tmp_path / "model.lcz").write_bytes(forge(LIES[lie], bytes(16)))
    with pytest.raises(ValueError, match="not a sound compressed model"):
        read(tmp_path / "model.lcz")


def test_the_forged_files_are_refused_for_their_lies_alone(tmp_path: Path) -> None:
    (tmp_path / "model.lcz").write_bytes(forge(SOUND, bytes(17)))
    assert torch.equal(read(tmp_path / "model.lcz").tensors["w"].value, torch.zeros(4))
