import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# So that the workers can import `tests.launch.jobs`: they get the driver's path.
sys.path.insert(0, str(Path(__file__).parents[2]))

from lightning_compress.launch.job import Launcher
from tests.clusters import start
from tests.launch.cases import LAUNCHERS, Case


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    with start.slurm() as folder:
        yield folder


@pytest.fixture(scope="session")
def ray() -> Iterator[str]:
    with start.ray() as address:
        yield address


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.cluster] * bool(case.cluster)) for name, case in LAUNCHERS.items()]
)
def case(request: pytest.FixtureRequest) -> Case:
    case = LAUNCHERS[request.param]
    if case.cluster:
        request.getfixturevalue(case.cluster)
    return case


@pytest.fixture
def make(case: Case, tmp_path: Path) -> Iterator[Callable[[int], Launcher]]:
    """Makes the launcher of the case with that many workers, and closes it after the test."""
    made: list[Launcher] = []

    def build(workers: int = 1) -> Launcher:
        made.append(case.make(workers, tmp_path / "launcher"))
        return made[-1]

    yield build
    for launcher in made:
        launcher.close()
