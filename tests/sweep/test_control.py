from pathlib import Path

import pytest

from lightning_compress.sweep import control
from lightning_compress.sweep.control import Stopped, Words


def test_words_reach_the_driver_once(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    with control.lock(folder):
        words = Words(folder)
        assert words.read() == 0
        control.ask(folder, add=3)
        assert (words.read(), words.read()) == (3, 0)
        control.ask(folder, stop=True)
        with pytest.raises(Stopped, match="sweep resume"):
            words.read()


def test_words_to_nobody_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    with pytest.raises(ValueError, match="no process is running the study"):
        control.ask(folder, stop=True)
    with control.lock(folder):
        assert control.is_driven(folder)
    assert not control.is_driven(folder)


def test_a_word_left_for_an_earlier_driver_is_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    with control.lock(folder):
        Words(folder)
        control.ask(folder, stop=True)
    with control.lock(folder):
        assert Words(folder).read() == 0
