import json
from pathlib import Path

import pytest

from lightning_compress.core.files import write_json


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new/a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"new": float("nan")})
    (tmp_path / "new/a.json.part").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


def test_keys_are_sorted_unless_their_order_says_something(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    write_json(tmp_path / "b.json", {"b": 1, "a": 2}, sort_keys=False)
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["a", "b"]
    assert list(json.loads((tmp_path / "b.json").read_text())) == ["b", "a"]
