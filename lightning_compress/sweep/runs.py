"""The runs of one study: each in a folder of its own, trained once, known again when it is finished."""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from lightning_compress.run.result import Result
from lightning_compress.sweep import space
from lightning_compress.sweep.spec import StudySpec

Kind = Literal["teacher", "baseline", "trial", "confirm"]


@final
@dataclass(frozen=True)
class Tools:
    """What a study does its runs with: overrides to config, config to result, folder to test numbers."""

    compose: Callable[[Sequence[str]], dict[str, Any]]
    train: Callable[[dict[str, Any], Path], Result]
    evaluate_test: Callable[[Path], dict[str, float]]


@final
@dataclass(frozen=True)
class Run:
    """One run of a study; `label` tells runs of a kind apart, as `7` or, for trial 7 on seed 101, `7-101`.

    >>> Run("trial", "7", ()).name
    'trial-7'
    """

    kind: Kind
    label: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.kind}-{self.label}"


@final
class Runs:
    """The runs in `<folder>/runs`; `identity` is the study's own, so that W&B never mixes two studies of one name."""

    def __init__(self, folder: Path, *, spec: StudySpec, identity: str, tools: Tools) -> None:
        self.folder, self._spec, self._identity, self._tools = folder / "runs", spec, identity, tools

    def place(self, name: str) -> Path:
        """Folder of the run called `name`."""
        return self.folder / name

    def execute(self, run: Run) -> Result:
        """Train one run, or read its result where it is finished.

        Whatever a run raises is raised, after its traceback was written to `error.txt` in its folder.
        """
        folder = self.place(run.name)
        known = finished(folder)
        if known is not None:
            return known
        folder.mkdir(parents=True, exist_ok=True)
        try:
            result = self._tools.train(self._tools.compose(self._overrides(run)), folder)
        except Exception:
            (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
            raise
        if run.kind == "trial":
            result.trial = int(run.label)
            result.save(folder)
        return result

    def test(self, name: str) -> dict[str, float]:
        """The test numbers of a finished run; the split is read once, then `test.json` beside the result is."""
        path = self.place(name) / "test.json"
        if not path.exists():
            path.write_text(json.dumps(self._tools.evaluate_test(path.parent), indent=1), encoding="utf-8")
        return test_numbers(path.parent)

    def _overrides(self, run: Run) -> list[str]:
        labels: Mapping[str, object] = {
            "wandb.group": self._spec.name,
            "wandb.job_type": run.kind,
            "wandb.name": run.name,
            "wandb.id": f"{self._identity}-{run.name}",
            "wandb.tags": [self._spec.name, run.kind],
        }
        # One W&B folder for the study, so that one command uploads all of it.
        home = f"++wandb.folder={space.written(str(self.folder.parent.resolve()))}"
        return [*self._spec.base, *run.overrides, *space.overrides(labels), home]


def finished(folder: Path) -> Result | None:
    """The result in `folder`, or None where the run is not there or did not end well."""
    if not (folder / "result.json").exists():
        return None
    result = Result.load(folder)
    return result if result.status == "done" else None


def test_numbers(folder: Path) -> dict[str, float]:
    """What the test split said about the run in `folder`, empty when it was not read."""
    path = folder / "test.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
