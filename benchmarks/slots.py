"""A launcher whose workers do nothing: a job is a deadline in one of its slots, and leaves the files of a real one."""

import heapq
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import numpy as np

from lightning_compress.core.files import write_json
from lightning_compress.launch import call
from lightning_compress.launch.job import Job, Outcome, Resources
from lightning_compress.run import traffic
from lightning_compress.run.result import Result

EPOCHS = 50
SPREAD = 10.0
TIMING = 0.1  # seconds
PATIENCE = 60.0
SEED = 0
_READ = 0.002  # seconds for which a look at the scheduler's figures holds


@final
class Clock:
    """Seconds; with `own_core` it stands still while this process waits for a core that others have taken.

    What is left is what the driver does, and waits for, on a machine where it has a core of its own.
    """

    def __init__(self, own_core: bool) -> None:
        self._own_core, self._starved, self._read = own_core, 0.0, 0.0

    def __call__(self) -> float:
        """The time."""
        wall = time.time()
        if self._own_core and wall - self._read > _READ:
            self._starved, self._read = starved(), wall
        return wall - self._starved


def starved() -> float:
    """Seconds that this process has waited for a core so far."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


@final
@dataclass(frozen=True)
class Moment:
    """A time `at`, and what this process has used by then: seconds of CPU, and of waiting for a core."""

    at: float
    cpu: float
    starved: float

    @classmethod
    def now(cls, clock: Clock) -> Self:
        """This moment."""
        return cls(clock(), time.process_time(), starved())


@final
class Length:
    """Seconds of a full training by the name of its run: log-uniform for trials, short for dense networks."""

    def __init__(self, mean: float) -> None:
        self.shortest = mean * math.log(SPREAD) / (SPREAD - 1)

    def of(self, name: str) -> float:
        """The length of one run."""
        kind, _, number = name.partition("-")
        if kind != "trial":
            return TIMING
        return float(self.shortest * SPREAD ** np.random.default_rng([SEED, int(number)]).uniform())


@final
class Deadline:
    """A job that does nothing but leave its files when their time has come; `ended` is when its slot became free."""

    def __init__(self, job: Job, clock: Clock, seconds: float, trained: int) -> None:
        self.id, self._job, self._clock = job.name, job, clock
        self.work: list[tuple[float, float]] = []
        self.waits: list[tuple[float, float]] = []
        self.ended = math.inf
        self.trained = trained
        self._outcome: Outcome | None = None
        self._pace = seconds / EPOCHS
        self._asked: float | None = None
        self._stops = [epoch for epoch in (*job.arguments.get("rungs", ()), EPOCHS) if epoch > trained]
        self._train(clock())

    def poll(self) -> Outcome | None:
        """How the job ended, or None while it runs."""
        now = self._clock()
        while self._outcome is None and now >= self._due:
            if self._asked is None:
                self._reach()
            elif not self._answered(now):
                break
        return self._outcome

    def cancel(self) -> None:
        """Nothing runs."""

    def _train(self, start: float) -> None:
        self._since, self._asked = start, None
        self._due = start + self._pace * (self._stops[0] - self.trained)

    def _reach(self) -> None:
        self.work.append((self._since, self._due))
        reached = self._stops.pop(0)
        if "record" in self._job.arguments:
            _time(self._job.folder, self._job.arguments["record"])
            self._end("done", self._due)
            return
        self.trained = reached
        if self._stops:
            _result(self._job, self.trained, "paused").save(self._job.folder, traffic.rung_file(self.trained))
            self._asked = self._due
        else:
            _result(self._job, EPOCHS, "done").save(self._job.folder)
            self._end("done", self._due)

    def _answered(self, now: float) -> bool:
        """Whether the worker has seen its verdict by now, or waits no more."""
        assert self._asked is not None, "only who asked is answered"
        go = traffic.verdict(self._job.folder, self.trained)
        if go is None and now < self._asked + PATIENCE:
            return False
        self.waits.append((self._asked, now))
        if go:
            self._train(now)
        else:
            self._end("paused", now)
        return True

    def _end(self, status: str, at: float) -> None:
        self.ended, self._outcome = at, Outcome("done", value={"status": status, "epoch": self.trained})


@final
class Slots:
    """A launcher with `workers` slots; `starts` has for each job when its slot became free and when it was taken."""

    patience = PATIENCE

    def __init__(self, workers: int, length: Length, clock: Clock) -> None:
        self.workers, self._length, self._clock = workers, length, clock
        self._free = [clock()] * workers
        self._running: list[Deadline] = []
        self._trained: dict[str, int] = {}
        self.work: list[tuple[float, float]] = []
        self.waits: list[tuple[float, float]] = []
        self.starts: list[tuple[float, float]] = []
        self.trials: list[float] = []
        self.full: Moment | None = None

    def has_room(self, resources: Resources) -> bool:
        """Whether a slot is free."""
        for handle in self._running:
            handle.poll()
        for handle in [each for each in self._running if each.ended < math.inf]:
            self._running.remove(handle)
            heapq.heappush(self._free, handle.ended)
            self._trained[handle.id] = max(handle.trained, self._trained.get(handle.id, 0))
            self.work += handle.work
            self.waits += handle.waits
        return bool(self._free)

    def submit(self, job: Job) -> Deadline:
        """Start a job in the slot that has been free for longest."""
        call.write(job)
        timing = "record" in job.arguments
        now, seconds = self._clock(), TIMING if timing else self._length.of(job.name)
        handle = Deadline(job, self._clock, seconds, 0 if timing else self._trained.get(job.name, 0))
        self._running.append(handle)
        self.starts.append((heapq.heappop(self._free), now))
        if job.name.startswith("trial"):
            self.trials.append(now)
        if not self._free and self.full is None:
            self.full = Moment.now(self._clock)
        return handle

    def resize(self, workers: int) -> None:
        """Nobody asks for that here."""

    def close(self) -> None:
        """Nothing runs."""


def _time(folder: Path, record: str) -> None:
    data = json.loads((folder / record).read_text())
    ratio = data["cost"]["macs"] / 1e6
    added = {"latency_ms": 2 * ratio, "latency_ratio": ratio, "device": "none", "runtime": "none"}
    write_json(folder / record, data | {"cost": data["cost"] | added})


def _result(job: Job, epoch: int, status: str) -> Result:
    """Wider, denser and more bits: better, larger, slower; better with every epoch; with as much text as a real one."""
    settings: dict[str, Any] = job.arguments["config"]
    methods = settings["methods"]
    prune, quantize = methods.get("prune"), methods.get("quantize")
    sparsity = prune["sparsity"]["last"] if prune else 0.0
    share = (quantize["weight_bits"] if quantize else 32) / 32 * (1 - sparsity)
    macs = settings["model"]["width"] ** 2 * (1 - sparsity if prune and prune["pattern"] == "channel" else 1)
    size = settings["model"]["width"] ** 2 * share
    noise = float(np.random.default_rng([SEED, len(job.name), int(size * 1e9)]).uniform(0, 0.02))
    loss = 0.2 * math.exp(-4 * size**0.5 - macs) + 0.3 / epoch + noise
    for name in ("model.lcz", "model.onnx"):
        (job.folder / name).write_bytes(b"")
    layer = {"name": "conv", "kind": "Conv2d", "shape": [64, 64, 3, 3], "weight_bits": 8, "activation_bits": 8}
    return Result(
        name=job.name,
        status=status,
        metrics={"val/accuracy": 1 - loss},
        cost={
            "params": 100_000,
            "nonzeros": int(100_000 * (1 - sparsity)),
            "sparsity": sparsity,
            "macs": int(1e6 * macs),
            "relative_bops": macs * share,
            "packed_bytes": int(400_000 * size) + 500,
            "dense_bytes": 400_500,
        },
        layers=[layer | {"sparsity": sparsity, "macs": 10**6, "bytes": 36_864}] * 8,
        config=settings,
        seed=settings["seed"],
        wall_seconds=1.0,
        history=[{"epoch": float(number), "train/loss": loss, "val/accuracy": 1 - loss} for number in range(epoch)],
        files={"packed": "model.lcz", "onnx": "model.onnx"},
    )
