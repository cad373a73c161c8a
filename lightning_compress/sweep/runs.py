"""The runs of one study: each in a folder of its own, trained once, known again when it is finished."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

from lightning_compress.launch.job import Job, Resources
from lightning_compress.run.result import Result
from lightning_compress.sweep import space
from lightning_compress.sweep.spec import StudySpec

_ALONE: dict[str, Any] = {"cores": 1, "processes": 1, "exclusive": True}
Kind = Literal["teacher", "baseline", "trial", "confirm"]


@final
@dataclass(frozen=True)
class Tools:
    """What a study does its runs with: overrides to config, and by `package.module:function` what its workers call."""

    compose: Callable[[Sequence[str]], dict[str, Any]]
    trial: str = "lightning_compress.run.worker:trial"
    timing: str = "lightning_compress.run.worker:timing"
    test: str = "lightning_compress.run.worker:test"
    timing_priced: str = "lightning_compress.run.worker:timing_priced"


@final
@dataclass(frozen=True)
class Run:
    """One run of a study; `label` tells runs of a kind apart, as `7` or, for trial 7 on seed 101, `7-101`.

    It is compared with others after each of the epochs `rungs`; `timed` says whether its latency is wanted,
    `from_dense` whether it starts from the weights of the dense baseline of its own network.

    >>> Run("trial", "7", ()).name
    'trial-7'
    """

    kind: Kind
    label: str
    overrides: tuple[str, ...]
    rungs: tuple[int, ...] = ()
    timed: bool = True
    from_dense: bool = False

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.kind}-{self.label}"


@final
class Runs:
    """The runs in `<folder>/runs`; `identity` is the study's own, so that W&B never mixes two studies of one name."""

    def __init__(self, folder: Path, *, spec: StudySpec, identity: str, tools: Tools, wandb_mode: str) -> None:
        self.folder, self._spec, self._identity, self._tools = folder / "runs", spec, identity, tools
        self._mode = wandb_mode
        self._table = tools.compose(spec.base)["measure"].get("table")

    @property
    def priced(self) -> bool:
        """Whether latencies come from a table: then none is measured during the search."""
        return self._table is not None

    def place(self, name: str) -> Path:
        """Folder of the run called `name`."""
        return self.folder / name

    @property
    def resources(self) -> Resources:
        """What training a run takes."""
        launch = self._spec.launching
        return Resources(
            devices=launch.devices or 0.0, cores=launch.cores, timeout=launch.timeout, processes=launch.ranks
        )

    def training(self, run: Run, patience: float) -> Job:
        """The job that trains a run."""
        place = self.place(run.name)
        arguments = {"config": self._config(run), "folder": str(place.resolve()), "rungs": list(run.rungs)}
        return Job(run.name, self._tools.trial, {**arguments, "patience": patience}, place, self.resources)

    def timing(self, name: str, record: str) -> Job:
        """The job that times what a run exported, beside the reference, and adds it to its file `record`.

        It has the machine to itself, unless a table gives the latency.
        """
        job = self._timing(self._tools.timing, name, {"record": record})
        return replace(job, resources=replace(job.resources, exclusive=False)) if self.priced else job

    def timing_priced(self, name: str) -> Job:
        """The job that times, beside the reference, what a table gave the latency of."""
        return self._timing(self._tools.timing_priced, name, {})

    def _timing(self, call: str, name: str, more: dict[str, Any]) -> Job:
        place = self.place(name)
        reference = reference_file(self.folder.parent, self._spec)
        arguments = {"folder": str(place.resolve()), "reference": str(reference.resolve()) if reference else None}
        one = min(1.0, self.resources.devices)
        return Job(name, call, {**arguments, **more}, place, replace(self.resources, **_ALONE, devices=one))

    def testing(self, name: str) -> Job:
        """The job that reads the test split for a finished run."""
        place = self.place(name)
        data = self._tools.compose(self._spec.base).get("data")
        arguments = {"folder": str(place.resolve()), "data": data}
        return Job(name, self._tools.test, arguments, place, replace(self.resources, processes=1))

    def wandb_id(self, run: Run) -> str:
        """The W&B id of a run."""
        return f"{self._identity}-{run.name}"

    def _config(self, run: Run) -> dict[str, Any]:
        overrides = self._overrides(run)
        config = self._tools.compose(overrides)
        if not run.from_dense:
            return config
        for index in range(len(self._spec.baselines)):
            place = self.place(f"baseline-{index}").resolve()
            if Result.load(place).config["model"] == config["model"]:
                return self._tools.compose([*overrides, *space.overrides({"weights": place / "weights.pt"})])
        raise ValueError(f"{run.name}: no dense baseline has its network {config['model']}")

    def _overrides(self, run: Run) -> list[str]:
        labels: Mapping[str, object] = {
            "measure.latency": False,
            "wandb.mode": self._mode,
            "wandb.group": self._spec.name,
            "wandb.job_type": run.kind,
            "wandb.name": run.name,
            "wandb.id": self.wandb_id(run),
            "wandb.tags": [self._spec.name, run.kind],
        }
        ranks = self.resources.processes
        # One W&B folder for the study, so that one command uploads all of it.
        forced = {
            "wandb.folder": str(self.folder.parent.resolve()),
            "measure.onnx": run.timed,
            **({"trainer.devices": ranks} if ranks > 1 else {}),
            **({"measure.table": str(Path(self._table).resolve())} if self._table else {}),
        }
        added = [f"++{override}" for override in space.overrides(forced)]
        return [*self._spec.base, *run.overrides, *space.overrides(labels), *added]


def reference_file(folder: Path, spec: StudySpec) -> Path | None:
    """The ONNX file that every latency of the study in `folder` is measured beside; None: each run's `dense.onnx`."""
    if spec.reference is None:
        return None
    return folder / "runs" / f"baseline-{list(spec.baselines).index(spec.reference)}" / "model.onnx"


def finished(folder: Path) -> Result | None:
    """The result in `folder`, or None where the run is not there or did not end well."""
    if not (folder / "result.json").exists():
        return None
    result = Result.load(folder)
    return result if result.status == "done" else None
