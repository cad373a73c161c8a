import pytest

from lightning_compress.coding.reader import Reader, varint


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 16383, 16384, 2**31, 2**62, 2**63 - 1])
def test_numbers_come_back_in_as_many_bytes_as_they_have_sevens_of_bits(number: int) -> None:
    data = varint(number)
    assert len(data) == max(1, -(-number.bit_length() // 7))
    reader = Reader(data + b"x")
    assert reader.varint() == number
    assert (reader.left, reader.take(1)) == (1, b"x")


def test_hand_worked() -> None:
    # 300 = 10 0101100: the low seven bits with the flag, then the rest.
    assert varint(300) == bytes([0b10101100, 0b10])


@pytest.mark.parametrize("number", [-1, 2**63])
def test_numbers_that_cannot_be_written(number: int) -> None:
    with pytest.raises(ValueError, match=r"expected a number in 0\.\.2\*\*63 - 1"):
        varint(number)


@pytest.mark.parametrize("data", [b"\x80\x00", b"\x80" * 9 + b"\x01", b"\xff" * 20])
def test_numbers_in_more_bytes_than_they_need(data: bytes) -> None:
    with pytest.raises(ValueError, match="more bytes than it needs"):
        Reader(data).varint()


@pytest.mark.parametrize("size", [-1, 4, 2**60])
def test_taking_more_than_there_is(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes declared where 3 are left"):
        Reader(b"abc").take(size)


def test_a_number_that_is_cut_off() -> None:
    with pytest.raises(ValueError, match="1 bytes declared where 0 are left"):
        Reader(b"\x80").varint()
