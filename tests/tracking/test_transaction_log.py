import json
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from lightning_compress.tracking.transaction_log import read_records, write_records

BLOCK = 32768


def records(sizes: list[int]) -> list[bytes]:
    return [random.Random(seed).randbytes(size) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 7 - 7 - 1, BLOCK - 7 - 7, BLOCK - 7 - 6, BLOCK, 3 * BLOCK, 100_000])
def test_what_is_written_is_read(size: int, tmp_path: Path) -> None:
    written = records([size, 5, size, 0, 11])
    write_records(tmp_path / "log", written)
    assert read_records(tmp_path / "log") == (written, True)


def test_a_file_made_by_hand(tmp_path: Path) -> None:
    def fragment(kind: int, data: bytes) -> bytes:
        return struct.pack("<IHB", zlib.crc32(bytes([kind]) + data), len(data), kind) + data

    start = b":W&B" + bytes([0xE1, 0xBE, 0])
    filler = fragment(1, bytes(BLOCK - 7 - 7 - 4))  # 4 bytes are left in the block: too few for a header
    log = start + filler + bytes(4) + fragment(2, b"ab") + fragment(3, b"cd") + fragment(4, b"e")
    (tmp_path / "log").write_bytes(log)
    assert read_records(tmp_path / "log") == ([bytes(BLOCK - 18), b"abcde"], True)
    write_records(tmp_path / "again", [bytes(BLOCK - 18), b"abcde"])
    assert (tmp_path / "again").read_bytes() == start + filler + bytes(4) + fragment(1, b"abcde")


def test_wherever_a_log_is_torn_the_records_before_are_kept(tmp_path: Path) -> None:
    written, path = records([10, BLOCK, 20]), tmp_path / "log"
    write_records(path, written)
    whole = path.read_bytes()
    ends = [7 + 7 + 10, 7 + 7 + 10 + 7 + BLOCK + 7, len(whole)]
    for cut in [*range(7, 60), *range(BLOCK - 20, BLOCK + 60), *range(len(whole) - 30, len(whole) + 1)]:
        path.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert read_records(path) == (written[:kept], cut in (7, *ends)), cut


def test_a_damaged_record_ends_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write_records(path, [b"first", b"second", b"third"])
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"second")] ^= 1
    path.write_bytes(damaged)
    assert read_records(path) == ([b"first"], False)


def test_another_file_says_so(tmp_path: Path) -> None:
    for content in (b"", b":W&B", b"something else"):
        (tmp_path / "log").write_bytes(content)
        with pytest.raises(ValueError, match="is no log of W&B"):
            read_records(tmp_path / "log")


def test_wandb_reads_what_is_written(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    make = vars(wandb_internal_pb2)["Record"]
    rows = []
    for number in range(5):
        row = make(num=number + 1)
        item = row.history.item.add()
        item.key, item.value_json = "note", json.dumps("x" * 20_000 + str(number))
        rows.append(row.SerializeToString())
    path = tmp_path / "run-1.wandb"
    write_records(path, rows)
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(
        command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60
    ).stdout.splitlines()
    assert [json.loads(line)["history"]["item"]["note"][-1] for line in lines] == ["0", "1", "2", "3", "4"]
