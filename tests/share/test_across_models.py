"""One codebook for several networks."""

import functools
from pathlib import Path

import torch
from torch import nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact
from lightning_compress.export import packed
from lightning_compress.models.shared_trunk import SharedTrunk, side_by_side
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.share.method import Share

EXAMPLE = torch.zeros(2, 1, 8, 8)


def _networks() -> SharedTrunk:
    torch.manual_seed(0)
    nets = {"large": functools.partial(SmallConv, width=0.5), "small": functools.partial(SmallConv, width=0.25)}
    return side_by_side(nets, {"large": 10, "small": 10}, image_size=8)


def _shared(model: nn.Module) -> Compact:
    made = Compressor([Share(bits=6, scope="global")])
    made.attach(model, EXAMPLE)
    made.prepare(model, [])
    return made.finalize(model, EXAMPLE)


def test_networks_in_one_file_have_one_codebook_and_stay_what_they_are(tmp_path: Path) -> None:
    together = _shared(_networks())
    size = packed.write(together, tmp_path / "both.lcz")
    back = packed.read(tmp_path / "both.lcz")
    books = [stored.levels for stored in back.tensors.values() if stored.levels is not None]
    assert len(books) == 8, "four layers of each network"
    assert all(torch.equal(book, books[0]) for book in books)

    alone = {name: _shared(net) for name, net in _networks().heads.items()}
    sizes = {name: packed.write(compact, tmp_path / f"{name}.lcz") for name, compact in alone.items()}
    levels = {
        name: [s.levels for s in compact.stored.values() if s.levels is not None] for name, compact in alone.items()
    }
    assert not torch.equal(levels["large"][0], levels["small"][0]), "apart they have a codebook each"
    assert size < sum(sizes.values()) - 64 * 4, "what a codebook of 64 floats takes is saved, and more"

    inputs = torch.randn(16, 1, 8, 8)
    outputs = packed.rebuild(back, _networks())(inputs)
    for name, head in together.model.heads.items():  # type: ignore[operator, union-attr]
        assert torch.equal(outputs[name], head(inputs))
