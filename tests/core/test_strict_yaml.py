"""YAML is read as Hydra reads it, and says what is wrong with it."""

from pathlib import Path

import pytest

from lightning_compress.core import strict_yaml


def test_numbers_are_those_of_hydra(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1e-3\nb: -2E4\nc: 1\n")
    assert strict_yaml.load(path) == {"a": 0.001, "b": -20000.0, "c": 1}


@pytest.mark.parametrize("text", ["a: 1\na: 2\n", "a: [1\n", "b: {c: 1, c: 2}\n"])
def test_what_is_no_yaml_or_has_a_key_twice_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="not readable YAML"):
        strict_yaml.load(path)


def test_without_a_near_name_all_are_listed() -> None:
    assert strict_yaml.unknown("x", ["seeds", "title"], "a row") == "'x' is not in a row: write one of seeds, title"
