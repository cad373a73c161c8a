"""Taking coded data apart: a place in a stretch of bytes, and whole numbers of as many bytes as they need."""

from typing import final

_MOST_VARINT_BYTES = 9


def varint(number: int) -> bytes:
    """A number >= 0 in groups of seven bits, the lowest first; the top bit of a byte says that another one follows.

    Raises:
        ValueError: `number` is negative or has more than 63 bits.

    Example:
        >>> varint(5).hex(), varint(300).hex()
        ('05', 'ac02')
    """
    if not 0 <= number < 1 << 7 * _MOST_VARINT_BYTES:
        raise ValueError(f"expected a number in 0..2**{7 * _MOST_VARINT_BYTES} - 1, got {number}")
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


@final
class Reader:
    r"""Bytes taken piece by piece from the front; a size is checked before anything is made of it.

    Example:
        >>> reader = Reader(b"\x02ab")
        >>> reader.take(reader.varint()), reader.left
        (b'ab', 0)
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    @property
    def left(self) -> int:
        """Number of bytes that nobody has taken."""
        return len(self._data) - self.at

    def take(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            ValueError: there are fewer.
        """
        if not 0 <= size <= self.left:
            raise ValueError(f"{size} bytes declared where {self.left} are left")
        self.at += size
        return self._data[self.at - size : self.at]

    def varint(self) -> int:
        """The number that `varint` wrote.

        Raises:
            ValueError: it does not end, or is not as `varint` writes it.
        """
        number = 0
        for place in range(_MOST_VARINT_BYTES):
            byte = self.take(1)[0]
            number |= (byte & 127) << 7 * place
            if byte < 128:
                if byte == 0 and place:
                    break
                return number
        raise ValueError("a number is written in more bytes than it needs")
