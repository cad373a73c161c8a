"""A table made by hand: every prediction is a sum that can be done on paper."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_compress.export.latency_table import Table, nonnegative
from lightning_compress.export.layers import Layer, Network

CONV = Layer("conv", 16, 16, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), name="conv1")
INTEGER = Layer(**{**asdict(CONV), "before": "uint8", "after": "uint8"})


def grid(layer: Layer, of: Callable[[int, int], float], *, kernels: tuple[str, ...] = ("integer",)) -> dict[str, Any]:
    ins = outs = [2, 4, 8, 14, 16]
    values = [[of(a, b) for b in outs] for a in ins]
    return {"layer": asdict(layer), "ins": ins, "outs": outs, "ms": {way: values for way in kernels}}


def written(**changes: Any) -> dict[str, Any]:
    floats = grid(CONV, lambda a, b: a * b / 100 if a % 4 == b % 4 == 0 else a * b / 10)
    integers = grid(INTEGER, lambda a, b: a * b / 200, kernels=("integer", "float"))
    data = {
        **{"schema": 1, "device": "a CPU", "runtime": "onnxruntime 1.31", "threads": 1, "batch_size": 64, "rounds": 5},
        **{"layers": [floats, integers], "networks": []},
    }
    return json.loads(json.dumps({**data, **changes}))  # type: ignore[no-any-return]


def of(layer: Layer, ins: int, outs: int, *, repeats: int = 1, moved: int = 0) -> Network:
    return Network((layer.at(ins, outs),) * repeats, {"float": moved, "uint8": 0})


def test_between_counts_it_is_linear() -> None:
    table = Table(written())
    assert table.predict(of(CONV, 8, 16))[0] == pytest.approx(1.28)
    assert table.predict(of(CONV, 12, 16))[0] == pytest.approx(1.92)
    assert table.predict(of(CONV, 12, 12, repeats=3))[0] == pytest.approx(3 * 1.44)


def test_counts_that_are_no_multiple_of_4_have_prices_of_their_own() -> None:
    table = Table(written())
    assert table.predict(of(CONV, 14, 14))[0] == pytest.approx(19.6)
    assert table.predict(of(CONV, 11, 16))[0] == pytest.approx(17.6)  # between 2 and 14, not between 8 and 16
    assert table.predict(of(CONV, 15, 15))[0] == pytest.approx(19.6)  # there is none beyond 14
    assert table.predict(of(CONV, 1, 2))[0] == pytest.approx(0.4)


def test_the_faster_kernels_count() -> None:
    data = written()
    data["layers"][1]["ms"]["float"] = (0.5 * np.array(data["layers"][1]["ms"]["integer"])).tolist()
    ms, kernels = Table(data).predict(of(INTEGER, 16, 16))
    assert (ms, kernels) == (0.64, "float")
    assert Table(written()).predict(of(INTEGER, 16, 16))[0] == pytest.approx(1.28)


def networks(off: dict[int, float]) -> list[dict[str, Any]]:
    """Networks that take their layers' sum and 1e-5 ms for each number moved; `off` spoils some."""
    found = []
    for number, (count, moved) in enumerate(((16, 1000), (8, 9000), (4, 70000), (12, 0), (14, 500), (16, 90000))):
        one = of(CONV, count, count, moved=moved)
        layers = count * count / (100 if count % 4 == 0 else 10)
        ms = (layers + 1e-5 * moved) * off.get(number, 1.0)
        found.append({"name": str(number), "fitted": number < 3, **asdict(one), "ms": {"integer": ms}})
    return found


def test_factor_and_rates_are_found_again() -> None:
    table = Table(written(networks=networks({})))
    assert table.predict(of(CONV, 8, 8, moved=5000))[0] == pytest.approx(0.64 + 0.05)
    error = table.error
    assert error is not None
    assert error.networks == 3
    assert error.mean == pytest.approx(0, abs=1e-9)
    assert error.ratio_worst == pytest.approx(0, abs=1e-9)
    assert error.rank == pytest.approx(1)


def test_error_is_that_of_networks_not_fitted_to() -> None:
    error = Table(written(networks=networks({3: 2.0, 4: 0.8}))).error
    assert error is not None
    assert error.mean == pytest.approx((0.5 + 0.25 + 0) / 3)
    assert [error.worst, error.ratio_worst] == pytest.approx([0.5, 0.5])
    assert "on 3 networks" in str(error)
    # told 1.44, 19.6, 3.46 ms; measured 2.88, 15.7, 3.46
    assert error.rank == pytest.approx(1)
    worse = Table(written(networks=networks({3: 3.0}))).error  # 4.32 instead of 1.44: second and third change places
    assert worse is not None
    assert worse.rank == pytest.approx(0.5)


def test_a_factor_is_held_near_1() -> None:
    """Three equations say 2, one a tenth as strong as them together says 1."""
    data = [
        {**one, "moved": {"float": 0, "uint8": 0}, "ms": {"integer": 0.02 * one["layers"][0]["ins"] ** 2}}
        for one in networks({})[:3]
    ]
    told = Table(written(networks=data)).predict(of(CONV, 16, 16))[0]
    # by (layers / ms = 1/2): least (3 (f/2 - 1)^2 + 0.3 (f - 1)^2)
    assert told / 2.56 == pytest.approx((3 / 2 + 0.3) / (3 / 4 + 0.3))


def test_nothing_to_compare_with() -> None:
    assert Table(written()).error is None
    assert "was not measured" in Table(written()).told()[1]


def test_told_lists_the_cost_of_channel_counts() -> None:
    lines = Table(written(networks=networks({}))).told()
    assert lines[0] == "a CPU, onnxruntime 1.31, 1 thread(s), batch 64"
    assert "conv 3x3 8x8, float to float, 16 in: 2: 3.2, 4: 0.64, 8: 1.28, 14: 22.4, 16: 2.56" in lines[3]


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (
            CONV.at(32, 16),
            ["'conv1'", "32 channels in", "only up to 16 in and 16 out", "lightning-compress latency-table"],
        ),
        (Layer(**{**asdict(CONV), "kernel": (5, 5)}), ["'conv1'", "conv 5x5 8x8", "at its largest width"]),
    ],
)
def test_a_layer_that_is_not_in_it(layer: Layer, said: list[str]) -> None:
    with pytest.raises(ValueError, match="does not price") as error:
        Table(written()).predict(Network((layer,)))
    assert all(text in str(error.value) for text in said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no latency table"),
        ("[]", "is no latency table of schema 1"),
        (json.dumps(written(schema=9)), "schema 1, it has 9"),
        (json.dumps(written(layers=[{"layer": {}}])), "is a damaged latency table"),
        (json.dumps(written(layers=[{**grid(CONV, lambda a, b: -1.0)}])), "ms above 0"),
        (json.dumps(written(layers=[{**grid(CONV, lambda a, b: 1.0), "ins": [1]}])), "1 x 5 channel counts"),
    ],
)
def test_what_is_no_table(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ValueError, match="lightning-compress latency-table") as error:
        Table.read(tmp_path / "t.json")
    assert said in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no latency table at"):
        Table.read(tmp_path / "t.json")


def test_weights_are_never_below_zero() -> None:
    """What least squares alone would give is 2 and -1; on the axes it is 1 and, for the other, worse."""
    terms = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 5.0]])
    assert np.linalg.lstsq(terms, np.ones(3), rcond=None)[0] == pytest.approx([2, -1])
    assert nonnegative(terms, np.ones(3)) == pytest.approx([6 / 14, 0])


def test_depthwise_layers_have_one_axis() -> None:
    each = Layer("conv", 16, 32, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups=16)
    assert each.place == (16, 2)
    assert each.at(4, 2) == Layer(**{**asdict(each), "ins": 4, "outs": 8, "groups": 4})
    assert each.at(4, 2).family == each.family
    data = {"layer": asdict(each), "ins": [4, 16], "outs": [2], "ms": {"integer": [[1.0], [4.0]]}}
    assert Table(written(layers=[data])).predict(Network((each.at(8, 2),)))[0] == pytest.approx(2.0)
