"""Latency of several candidates measured side by side, so that drift of the machine hits all of them alike."""

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TypeVar, final

import numpy as np

Name = TypeVar("Name")


@final
@dataclass(frozen=True)
class Bench:
    """What the calls run on: names and counts that travel with the numbers.

    Example:
        >>> Bench(runtime="onnxruntime 1.31.1", device="some CPU", threads=1, batch_size=64).threads
        1
    """

    runtime: str
    device: str
    threads: int
    batch_size: int


@final
@dataclass(frozen=True)
class Latency:
    """Latency of one call, in milliseconds, over the rounds of one measurement.

    `ratio` is this candidate's time over the reference's, the median of the ratios taken round by round: 0.5 is
    twice as fast as the reference.

    Example:
        >>> bench = Bench(runtime="eager", device="some CPU", threads=1, batch_size=1)
        >>> fast = measure({"a": lambda: None, "b": lambda: None}, reference="a", bench=bench, rounds=5)
        >>> fast["a"].ratio, fast["b"].rounds
        (1.0, 5)
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    ratio: float
    runtime: str
    device: str
    threads: int
    batch_size: int
    rounds: int


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    reference: str,
    bench: Bench,
    warmup: int = 5,
    rounds: int = 50,
    min_seconds: float = 1e-3,
) -> dict[str, Latency]:
    """Time the candidates as `sample` does; returns one `Latency` per name.

    Raises:
        ValueError: `reference` is not a candidate, or `rounds` or `warmup` is out of range.
    """
    if reference not in candidates:
        raise ValueError(f"expected the reference to be one of {sorted(candidates)}, got {reference!r}")
    samples = sample(candidates, warmup=warmup, rounds=rounds, min_seconds=min_seconds)
    return {name: summary(samples[name], samples[reference], bench) for name in candidates}


def sample(
    candidates: Mapping[Name, Callable[[], object]], *, warmup: int = 5, rounds: int = 50, min_seconds: float = 1e-3
) -> dict[Name, list[float]]:
    """Time the candidates in turn, A B C, B C A, C A B, ..., `rounds` times; seconds of a call in each round.

    Each candidate is called `warmup` times first. A sample is the mean of as many calls in a row as it takes to
    last `min_seconds`, found for each candidate beforehand. Garbage is collected before and not during the timing.

    Raises:
        ValueError: `rounds` or `warmup` is out of range.

    >>> len(sample({"a": lambda: None}, rounds=3)["a"])
    3
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"expected rounds >= 1 and warmup >= 0, got rounds={rounds} and warmup={warmup}")
    names = list(candidates)
    with _no_garbage_collection():
        for call in candidates.values():
            _sample(call, warmup)
        repeats = {name: _calibrate(call, min_seconds) for name, call in candidates.items()}
        samples: dict[Name, list[float]] = {name: [] for name in names}
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(_sample(candidates[name], repeats[name]) / repeats[name])
    return samples


def summary(samples: list[float], reference: list[float], bench: Bench) -> Latency:
    """The latency of a candidate, from its seconds and the reference's in the same rounds.

    >>> bench = Bench(runtime="eager", device="some CPU", threads=1, batch_size=1)
    >>> summary([0.001, 0.002], [0.002, 0.004], bench).ratio
    0.5
    """
    p10, median, p90 = (float(value) for value in np.percentile(np.array(samples) * 1e3, (10, 50, 90)))
    paired = ratio(samples, reference)
    return Latency(median_ms=median, p10_ms=p10, p90_ms=p90, ratio=paired, rounds=len(samples), **asdict(bench))


def ratio(samples: list[float], reference: list[float]) -> float:
    """The median of the ratios taken round by round.

    >>> ratio([1.0, 2.0, 3.0], [2.0, 4.0, 3.0])
    0.5
    """
    return float(np.median(np.array(samples) / np.array(reference)))


def _calibrate(call: Callable[[], object], min_seconds: float) -> int:
    """Smallest power of two of calls that lasts `min_seconds`; the best of three, as one hiccup fakes a slow call."""
    repeats = 1
    while min(_sample(call, repeats) for _ in range(3)) < min_seconds:
        repeats *= 2
    return repeats


def _sample(call: Callable[[], object], repeats: int) -> float:
    """Seconds that `repeats` calls take."""
    start = perf_counter()
    for _ in range(repeats):
        call()
    return perf_counter() - start


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
