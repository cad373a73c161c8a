"""Studies on a real PostgreSQL server, with several processes at it at once."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters import start

pytestmark = pytest.mark.cluster
TRIALS = 50
ROOT = Path(__file__).parents[2]
READER = """
import json, sys
from lightning_compress.sweep.study import Study
url, name = sys.argv[1:]
study = Study(None, name=name, objectives={"quality": "max"}, sampler="random", seed=0, storage=url)
trials = study.trials(repeats=True)
print(json.dumps([[trial.number, trial.state, *(trial.values or [None]), trial.params["width"]] for trial in trials]))
"""
DRIVER = """
import sys
from lightning_compress.sweep import space
from lightning_compress.sweep.study import Study
url, name, trials, seed = sys.argv[1:]
study = Study(None, name=name, objectives={"quality": "max"}, sampler="random", seed=int(seed), storage=url)
print("ready", flush=True)
sys.stdin.readline()
where = space.parse({"width": {"low": 0.0, "high": 1.0}})
for _ in range(int(trials)):
    trial = study.ask(where)
    if trial.repeats is None:
        study.tell(trial.number, [trial.params["width"]])

"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("psycopg")
    with start.postgres() as url:
        yield url


def _open(url: str, name: str) -> list[tuple[int, str, float, float]]:
    """Make the study where it is not there; number, state, value and parameter of its trials, as another process reads.

    A study does not close its connections, which a test would have to.
    """
    out = subprocess.run(
        [sys.executable, "-c", READER, url, name], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return [(number, state, value, width) for number, state, value, width in json.loads(out.stdout)]


def _drive(url: str, *names: str) -> None:
    """A process per name, which ask and tell at the same time."""
    drivers = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, url, name, str(TRIALS), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for seed, name in enumerate(names)
    ]
    for driver in drivers:
        assert driver.stdout is not None
        driver.stdout.readline()
    ends = []
    for driver in drivers:
        assert driver.stdin is not None
        driver.stdin.write("go\n")
        driver.stdin.flush()
    for driver in drivers:
        said, error = driver.communicate(timeout=120)
        ends.append((driver.returncode, said, error))
    assert [code for code, _, _ in ends] == [0] * len(names), ends


@pytest.mark.parametrize(("names", "each"), [(("a", "b"), TRIALS), (("one",) * 4, 4 * TRIALS)])
def test_drivers_at_one_database_lose_no_trial(url: str, names: tuple[str, ...], each: int) -> None:
    for name in names:
        _open(url, name)
    _drive(url, *names)
    for name in names:
        trials = _open(url, name)
        assert sorted(number for number, *_ in trials) == list(range(each))
        assert {state for _, state, *_ in trials} == {"done"}
        assert all(value == width for *_, value, width in trials)
