import gc
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from lightning_compress.export import latency
from lightning_compress.export.latency import Bench, measure

BENCH = Bench(runtime="fake 1.0", device="no CPU", threads=2, batch_size=16)


class Clock:
    """A clock that moves only when a candidate works, and the record of who worked when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += seconds()

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "perf_counter", clock)
    return clock


def test_medians_ratios_and_what_travels_along(clock: Clock) -> None:
    measured = measure(
        {"dense": clock.work("dense", lambda: 0.004), "pruned": clock.work("pruned", lambda: 0.001)},
        reference="dense",
        bench=BENCH,
        rounds=7,
    )
    assert list(measured) == ["dense", "pruned"]
    assert measured["dense"].median_ms == pytest.approx(4.0)
    assert measured["pruned"].median_ms == pytest.approx(1.0)
    assert measured["dense"].ratio == 1.0
    assert measured["pruned"].ratio == pytest.approx(0.25)
    pruned = measured["pruned"]
    assert (pruned.runtime, pruned.device, pruned.threads, pruned.batch_size, pruned.rounds) == (
        "fake 1.0",
        "no CPU",
        2,
        16,
        7,
    )


def test_order_is_interleaved_and_rotated(clock: Clock) -> None:
    calls = {name: clock.work(name, lambda: 0.002) for name in "ABC"}
    measure(calls, reference="A", bench=BENCH, warmup=2, rounds=4)
    assert "".join(clock.calls) == "AABBCC" + "AAABBBCCC" + "ABC" + "BCA" + "CAB" + "ABC"


def test_spread_is_that_of_the_rounds(clock: Clock) -> None:
    # Three calls of calibration come first, then the samples 1, 2, ..., 11 ms in a scrambled order.
    times = iter([0.001] * 3 + [0.001 * value for value in np.random.default_rng(0).permutation(11) + 1])
    measured = measure({"a": clock.work("a", lambda: next(times))}, reference="a", bench=BENCH, warmup=0, rounds=11)
    assert measured["a"].p10_ms == pytest.approx(2.0)
    assert measured["a"].median_ms == pytest.approx(6.0)
    assert measured["a"].p90_ms == pytest.approx(10.0)


def test_ratio_is_taken_round_by_round(clock: Clock) -> None:
    # Round by round b/a is 1, 1/4, 1; the ratio of the medians would be 4/8.
    times = {"a": iter([0.001] * 3 + [0.004, 0.008, 0.012]), "b": iter([0.001] * 3 + [0.004, 0.002, 0.012])}
    measured = measure(
        {name: clock.work(name, partial(next, values)) for name, values in times.items()},
        reference="a",
        bench=BENCH,
        warmup=0,
        rounds=3,
    )
    assert measured["a"].median_ms == pytest.approx(8.0)
    assert measured["b"].median_ms == pytest.approx(4.0)
    assert measured["b"].ratio == pytest.approx(1.0)


def test_short_calls_are_repeated_until_a_sample_lasts(clock: Clock) -> None:
    short = clock.work("s", lambda: 100e-6)
    measured = measure({"s": short}, reference="s", bench=BENCH, warmup=0, rounds=2)
    # 1, 2, 4, 8 and 16 calls are tried three times each; 16 x 0.1 ms is the first to last 1 ms.
    assert len(clock.calls) == 3 * 31 + 2 * 16
    assert measured["s"].median_ms == pytest.approx(0.1)


def test_calibration_is_not_fooled_by_one_slow_call(clock: Clock) -> None:
    times = iter([0.5] + [0.0006] * 100)
    measured = measure({"a": clock.work("a", lambda: next(times))}, reference="a", bench=BENCH, warmup=0, rounds=3)
    assert len(clock.calls) == 3 * 1 + 3 * 2 + 3 * 2
    assert measured["a"].median_ms == pytest.approx(0.6)


def test_real_sleeps() -> None:
    measured = measure(
        {"slow": lambda: time.sleep(0.006), "fast": lambda: time.sleep(0.002)},
        reference="slow",
        bench=BENCH,
        warmup=1,
        rounds=9,
    )
    assert measured["slow"].median_ms >= 6.0
    assert measured["fast"].ratio == pytest.approx(1 / 3, rel=0.3)


def test_garbage_collection_is_off_during_and_back_on_after_even_a_failure() -> None:
    seen: list[bool] = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 5:
            raise RuntimeError("broken candidate")

    with pytest.raises(RuntimeError, match="broken candidate"):
        measure({"a": call}, reference="a", bench=BENCH)
    assert seen == [False] * 5
    assert gc.isenabled()


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"one of \['a'\], got 'dense'"):
        measure({"a": lambda: None}, reference="dense", bench=BENCH)
    with pytest.raises(ValueError, match="got rounds=0 and warmup=5"):
        measure({"a": lambda: None}, reference="a", bench=BENCH, rounds=0)
