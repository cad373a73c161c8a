from typing import Any

import pytest

from lightning_compress.sweep.options import Fidelity, Launch


@pytest.mark.parametrize(
    ("parse", "data", "message"),
    [
        (Fidelity.parse, {"gracee": 1}, "unknown key 'gracee': did you mean 'grace'?"),
        (Fidelity.parse, {"eta": 1}, "eta must be a whole number from 2 up, got 1"),
        (Fidelity.parse, {"ramp": -1}, "ramp must be a whole number from 0 up, got -1"),
        (Fidelity.parse, {"ranking": "best"}, "ranking must be one of crowding, hypervolume; got 'best'"),
        (Fidelity.parse, {"proxies": ["a"]}, "proxies must map objectives to costs"),
        (Launch.parse, {"launcher": "pbs"}, "launcher must be one of inline, local, slurm, ray; got 'pbs'"),
        (Launch.parse, {"workers": 0}, "workers must be a whole number from 1 up, got 0"),
        (Launch.parse, {"timeout": -1}, "timeout must be a number from 0 up, or null; got -1"),
        (Launch.parse, {"retries": {"oom": 1}}, "retries must be one of crash, memory"),
        (Launch.parse, {"retries": {"crash": -1}}, "retries, crash must be a whole number from 0 up"),
    ],
)
def test_wrong_options_are_named(parse: Any, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(data)
    assert message in str(caught.value)


def test_ranks_are_processes_or_whole_devices() -> None:
    assert [Launch.parse(d).ranks for d in ({}, {"devices": 0.5}, {"devices": 2}, {"processes": 3})] == [1, 1, 2, 3]


def test_retries_that_are_not_named_keep_their_defaults() -> None:
    assert Launch.parse({"retries": {"crash": 5}}).retries == {"crash": 5, "memory": 1, "preempted": 10}
