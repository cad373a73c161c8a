"""Parts of a study file that say how trials are stopped early and where they run."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, final

RANKINGS = ("crowding", "hypervolume")
LAUNCHERS = ("inline", "local", "slurm", "ray")
_RETRIED = ("crash", "memory", "timeout", "preempted", "error")


class _Options:
    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """The options written as a mapping.

        Raises:
            ValueError: an unknown key, the nearest right one is named, or a wrong value.
        """
        known = [each.name for each in fields(cls)]  # type: ignore[arg-type]
        for key in data:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"write {', '.join(known)}"
                raise ValueError(f"unknown key {key!r}: {hint}")
        return cls(**data)


@final
@dataclass(frozen=True)
class Fidelity(_Options):
    """When trials are compared: after `ramp` + `grace` * `eta`^k epochs, where one in `eta` goes on at once.

    `ramp` is the length of the compression's schedules in epochs, before whose end accuracy says little. `proxies`
    names, for an objective that is measured only at the end (a latency), a cost that is known at a rung and ranks there
    in its place.

    Raises:
        ValueError: a value out of range.

    >>> Fidelity.parse({"ramp": 4, "grace": 2}).eta
    3
    """

    ramp: int = 0
    grace: int = 1
    eta: int = 3
    ranking: Literal["crowding", "hypervolume"] = "hypervolume"
    proxies: dict[str, str] = field(default_factory=lambda: {"cost/latency_ratio": "cost/macs"})

    def __post_init__(self) -> None:
        for name, least in (("ramp", 0), ("grace", 1), ("eta", 2)):
            _whole(name, getattr(self, name), least)
        _one_of("ranking", self.ranking, RANKINGS)
        if not isinstance(self.proxies, dict) or not all(isinstance(v, str) for v in self.proxies.values()):
            raise ValueError(f"proxies must map objectives to costs by name, got {self.proxies!r}")


@final
@dataclass(frozen=True)
class Launch(_Options):
    """Where and how runs are run: `workers` at once (None: as many as the machine has GPUs, or cores).

    Each run gets `devices` GPUs (a share of one, one, or several; None: one where there is one), `cores` CPU threads
    and `timeout` seconds; `processes` above 1 trains each run in so many (DDP). `retries` says how often a run is tried
    again by cause (crash, memory, timeout, preempted, error). `options` go to the launcher: SLURM's partition, Ray's
    address.

    Raises:
        ValueError: a value out of range.

    >>> Launch.parse({"workers": 8, "devices": 0.5}).retries["preempted"]
    10
    """

    launcher: Literal["inline", "local", "slurm", "ray"] = "local"
    workers: int | None = None
    devices: float | None = None
    cores: int = 1
    processes: int = 1
    timeout: float | None = None
    retries: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("launcher", self.launcher, LAUNCHERS)
        for name in ("cores", "processes"):
            _whole(name, getattr(self, name), 1)
        if self.workers is not None:
            _whole("workers", self.workers, 1)
        for name in ("devices", "timeout"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
                raise ValueError(f"{name} must be a number from 0 up, or null; got {value!r}")
        for cause, times in self.retries.items():
            _one_of("retries", cause, _RETRIED)
            _whole(f"retries, {cause}", times, 0)
        # A crash may be the machine's fault; what raised once raises again.
        object.__setattr__(self, "retries", {"crash": 1, "memory": 1, "preempted": 10, **self.retries})

    @property
    def ranks(self) -> int:
        """Processes that train one run together."""
        return max(self.processes, int(self.devices or 0))


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number from {least} up, got {value!r}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
