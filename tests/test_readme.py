"""The README's Python runs as it stands, and its commands exist."""

import re
from pathlib import Path

import pytest

from lightning_compress.arguments import EXAMPLES

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.slow
def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(block.replace("epochs=10", "epochs=1"), names)
    assert (tmp_path / "runs/mine/model.lcz").exists()
    assert callable(names["model"])


def test_every_command_is_shown_and_exists() -> None:
    assert set(re.findall(r"^lightning-compress ([\w-]+)", README, flags=re.MULTILINE)) == set(EXAMPLES)


def test_it_stays_short() -> None:
    assert len(README.splitlines()) < 150
