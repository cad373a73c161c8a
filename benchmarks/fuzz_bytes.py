"""Damage to a row of bytes."""

import random


def scrambled(data: bytes, rng: random.Random) -> bytes:
    """Some bytes of it flipped, overwritten, left out, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(out) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 64))
        way = rng.randrange(5)
        if way == 0 and place < len(out):
            out[place] ^= 1 << rng.randrange(8)
        elif way == 1:
            out[place : place + size] = rng.choice((b"\xff", b"\0", b"\x80", rng.randbytes(1))) * size
        elif way == 2:
            del out[place : place + size]
        elif way == 3:
            out[place:place] = rng.randbytes(size)
        else:
            other = rng.randrange(len(out) + 1)
            out[place:place] = out[other : other + size]
    return bytes(out)
