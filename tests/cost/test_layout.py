import numpy as np
import torch

from lightning_compress.coding.paper import encode_layer
from lightning_compress.core.stored import Stored
from lightning_compress.cost.layout import layout_bytes

LEVELS = [-3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0]


def shared(count: int = 1000) -> Stored:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(7, (count,), generator=generator)
    kept = torch.rand(count, generator=generator) < 0.1
    return Stored(torch.zeros(count)).chosen(codes, torch.tensor(LEVELS)).masked(kept)


def test_the_bytes_of_a_shared_tensor_and_a_plain_one() -> None:
    tensor = shared()
    entries = int(sum(1 + gap // 32 for gap in np.diff(np.flatnonzero(tensor.value), prepend=-1) - 1))
    # Seven values and zero: 3 bits a code, 5 a distance, 8 float32, and the number of entries in a byte or two.
    by_hand = -(-5 * entries // 8) + -(-3 * entries // 8) + 8 * 4 + (1 if entries < 128 else 2)
    stored = {"weight": tensor, "bias": Stored(torch.ones(3))}
    assert layout_bytes(stored, coded=False) == by_hand + 12
    levels = np.array([*LEVELS, 0.0], np.float32)
    whole = encode_layer(tensor.value.numpy(), levels, index_bits=5, coded=True)
    assert layout_bytes(stored, coded=True) == len(whole) + 12


def test_what_the_layout_does_not_know() -> None:
    blocks = Stored(torch.zeros(4, 4)).chosen(torch.zeros(4, 2), torch.zeros(3, 2))
    scaled = Stored(torch.zeros(4, 4)).chosen(torch.zeros(4, 4), torch.zeros(3), torch.full((4,), 2.0), axis=0)
    plain = Stored(torch.zeros(4))
    for stored in ({"a": blocks}, {"a": scaled}, {"a": plain}, {"a": shared(), "b": scaled}):
        assert layout_bytes(stored, coded=False) is None
