"""A study written down: what is run, what is searched, what is compared; read from one YAML file."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, final

from lightning_compress.core import strict_yaml
from lightning_compress.core.strict_yaml import unknown
from lightning_compress.sweep.options import Fidelity, Launch

SAMPLERS = ("tpe", "tpe_group", "nsga2", "nsga3", "gp", "random")
DIRECTIONS = ("max", "min")
_OF_THE_SEARCH = (
    *("objectives", "space", "sampler", "sampler_seed", "enqueue"),
    *("warm_start", "fidelity", "constraints", "start_dense", "storage"),
)
_MAY_GROW = (
    "trials",
    "trainings",
    "launch",
    "confirm_seeds",
    "test",
    "report",
    "expected_seconds",
    "expected_megabytes",
)


@final
@dataclass(frozen=True)
class StudySpec:
    """One study; every list of overrides is in Hydra's form (`model.width=0.5`, `prune=none`).

    `base` goes into every run; `dense` (what turns compression off) into the teacher and the baselines as well.
    `teacher` is what the teacher differs in (None: no teacher run), `baselines` what each dense baseline differs in,
    by name; `reference` names the baseline every size and latency is compared with. `objectives` maps a result's flat
    name to max or min, the first one is the quality shown on every y axis. `space` is read by `sweep/space.py`;
    `enqueue` holds recipes to start with, `warm_start` folders of earlier studies whose fronts are tried first. With
    `fidelity` poor trials stop early (`sweep/options.py`); `trainings` then limits the study to the compute of so many
    full ones. `constraints` are limits by result name, as {cost/packed_bytes: {max: 20000}}: what breaks one is never
    on the front. With `start_dense` a trial begins from the weights of the dense baseline of its own network. `launch`
    says where runs run, `storage` where Optuna keeps trials: the folder's journal, or a database's URL.
    Front points and baselines are trained again on each of `confirm_seeds`; `test` reads the test split once, at the
    end. `expected_seconds` and `expected_megabytes` of one run serve the dry run until a run has been measured.

    Raises:
        ValueError: a field has a wrong type or value; the message says what to write.

    >>> spec = StudySpec(name="tiny", objectives={"val/accuracy": "max"}, space={"model.width": [0.5, 1.0]}, trials=4)
    >>> spec.report
    'reports/tiny'
    """

    name: str
    objectives: dict[str, str]
    space: dict[str, Any]
    trials: int
    base: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)
    teacher: list[str] | None = None
    baselines: dict[str, list[str]] = field(default_factory=dict)
    reference: str | None = None
    sampler: str = "tpe"
    sampler_seed: int = 0
    enqueue: list[dict[str, Any]] = field(default_factory=list)
    warm_start: list[str] = field(default_factory=list)
    fidelity: dict[str, Any] | None = None
    trainings: float | None = None
    constraints: dict[str, dict[str, float]] = field(default_factory=dict)
    start_dense: bool = False
    launch: dict[str, Any] = field(default_factory=dict)
    storage: str | None = None
    confirm_seeds: list[int] = field(default_factory=list)
    test: bool = False
    report: str = ""
    expected_seconds: float | None = None
    expected_megabytes: float | None = None

    def __post_init__(self) -> None:
        for name, (expected, right) in _FORMS.items():
            if not right(getattr(self, name)):
                raise ValueError(f"study: {name} must be {expected}; got {getattr(self, name)!r}")
        for key, parsed in (("launch", "launching"), ("fidelity", "stopping")):
            try:
                getattr(self, parsed)
            except ValueError as error:
                raise ValueError(f"study: {key}: {error}") from error
        for name in (*self.objectives, *self.constraints):
            if name.startswith("test/"):
                raise ValueError(f"study: objective {name!r} would select on the test split; write val/{name[5:]}")
        self._check_baselines()
        if not self.report:
            object.__setattr__(self, "report", f"reports/{self.name}")

    def _check_baselines(self) -> None:
        if self.reference is not None and self.reference not in self.baselines:
            raise ValueError(f"study: reference {unknown(self.reference, self.baselines, 'the baselines')}")
        if self.baselines and self.reference is None:
            raise ValueError(
                f"study: reference is missing: name the baseline that sizes and latencies are compared with, "
                f"one of {', '.join(self.baselines)}"
            )
        if self.start_dense and not self.baselines:
            raise ValueError("study: start_dense needs baselines whose weights trials can start from")

    @property
    def quality(self) -> str:
        """The objective on every y axis: the first one."""
        return next(iter(self.objectives))

    @cached_property
    def launching(self) -> Launch:
        """Where runs run."""
        return Launch.parse(self.launch)

    @cached_property
    def stopping(self) -> Fidelity | None:
        """When trials stop early, None if never."""
        return None if self.fidelity is None else Fidelity.parse(self.fidelity)

    @property
    def limits(self) -> tuple[str, ...]:
        """Names of the constraints, as `cost/packed_bytes max`."""
        return tuple(f"{name} {side}" for name, sides in self.constraints.items() for side in sides)

    def violations(self, numbers: Mapping[str, float], *, known: Sequence[str] | None = None) -> dict[str, float]:
        """By how much each constraint is broken (above 0) or kept; with `known` only those on these names.

        Raises:
            ValueError: a constraint is on a name that `numbers` has not.
        """
        found = {}
        for limit in self.limits if known is None else [each for each in self.limits if each.split()[0] in known]:
            name, side = limit.split()
            if name not in numbers:
                raise ValueError(f"constraints: {unknown(name, numbers, 'a result')}")
            found[limit] = (numbers[name] - self.constraints[name][side]) * (1.0 if side == "max" else -1.0)
        return found

    def asdict(self) -> dict[str, Any]:
        """The study as JSON data, which `StudySpec(**data)` reads back."""
        return asdict(self)

    def continues(self, earlier: "StudySpec", *, trials_exist: bool) -> None:
        """Check that runs made for `earlier` count for this study too: it may have grown, or not have searched yet.

        Raises:
            ValueError: names the fields that differ.
        """
        free = _MAY_GROW if trials_exist else (*_MAY_GROW, *_OF_THE_SEARCH)
        changed = [
            each.name
            for each in fields(self)
            if each.name not in free and getattr(self, each.name) != getattr(earlier, each.name)
        ]
        if changed:
            raise ValueError(
                f"the study {self.name!r} was begun with another {', '.join(changed)}: its runs do not compare; "
                "write --fresh to begin anew, or give the file another name"
            )


def find(name: str, folders: Sequence[Path]) -> Path:
    """The study file called `name`: a path, or `sweeps/<name>.yaml` in the first of `folders` that has it.

    Raises:
        FileNotFoundError: names the nearest study there is.
    """
    direct = Path(name)
    if direct.suffix in (".yaml", ".yml"):
        if direct.is_file():
            return direct
        raise FileNotFoundError(f"no study file {name}")
    places = [folder / "sweeps" for folder in folders]
    for place in places:
        if (place / f"{name}.yaml").is_file():
            return place / f"{name}.yaml"
    known = [path.stem for place in places if place.is_dir() for path in sorted(place.glob("*.yaml"))]
    raise FileNotFoundError(f"study {unknown(name, known, ', '.join(map(str, places)))}, or the path of a .yaml file")


def load(path: Path) -> StudySpec:
    """The study in a YAML file; its name is the file's unless it says another.

    Raises:
        ValueError: not a mapping, a key twice, an unknown key (the nearest right one is named), a wrong value.
    """
    data = strict_yaml.load(path)
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold keys like name, space, objectives; got {type(data).__name__}")
    known = [each.name for each in fields(StudySpec)]
    for key in data:
        if key not in known:
            raise ValueError(f"{path}: key {unknown(str(key), known, 'a study')}")
    missing = [key for key in ("objectives", "space", "trials") if key not in data]
    if missing:
        raise ValueError(f"{path}: a study needs {', '.join(missing)}")
    try:
        return StudySpec(**{"name": path.stem, **data})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _overrides(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and "=" in item for item in value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _mapping_of(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: object) -> bool:
        return isinstance(value, dict) and all(isinstance(k, str) and k and right(v) for k, v in value.items())

    return check


def _positive_or_none(value: object) -> bool:
    return value is None or (_number(value) and value > 0)  # type: ignore[operator]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fresh_seeds(value: object) -> bool:
    return isinstance(value, list) and all(_whole(s) and s >= 0 for s in value) and len(set(value)) == len(value)


def _limits(value: object) -> bool:
    return bool(value) and _mapping_of(_number)(value) and set(value) <= set(DIRECTIONS)  # type: ignore[call-overload]


_FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": (
        "a file name: letters, digits, . _ -",
        lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*", v, re.ASCII) is not None,
    ),
    "objectives": (
        "result names with max or min, as {val/accuracy: max}",
        lambda v: bool(v) and _mapping_of(lambda direction: direction in DIRECTIONS)(v),
    ),
    "space": ("a mapping of config keys, not empty", lambda v: bool(v) and _mapping_of(lambda _: True)(v)),
    "trials": ("a count from 1 up", lambda v: _whole(v) and v >= 1),
    "base": ("a list of overrides like model.width=0.5", _overrides),
    "dense": ("a list of overrides like prune=none", _overrides),
    "teacher": ("a list of overrides like model.width=2, or null", lambda v: v is None or _overrides(v)),
    "baselines": ("names with lists of overrides, as {half: [model.width=0.5]}", _mapping_of(_overrides)),
    "reference": ("the name of a baseline", lambda v: v is None or isinstance(v, str)),
    "sampler": (f"one of {', '.join(SAMPLERS)}", lambda v: v in SAMPLERS),
    "sampler_seed": ("a whole number from 0 up", lambda v: _whole(v) and v >= 0),
    "enqueue": (
        "a list of recipes, each a mapping of space keys to values",
        lambda v: isinstance(v, list) and all(_mapping_of(lambda _: True)(item) for item in v),
    ),
    "warm_start": ("a list of study folders", lambda v: isinstance(v, list) and all(isinstance(s, str) for s in v)),
    "fidelity": ("keys ramp, grace, eta, or null", lambda v: v is None or isinstance(v, dict)),
    "trainings": ("a number above 0, or null", _positive_or_none),
    "constraints": ("limits by result name, as {cost/packed_bytes: {max: 20000}}", _mapping_of(_limits)),
    "start_dense": ("true or false", lambda v: isinstance(v, bool)),
    "launch": ("keys like launcher, workers", lambda v: isinstance(v, dict)),
    "storage": ("a database's URL, or null", lambda v: v is None or (isinstance(v, str) and "://" in v)),
    "confirm_seeds": ("a list of different whole numbers from 0 up", _fresh_seeds),
    "test": ("true or false", lambda v: isinstance(v, bool)),
    "report": ("the path of a folder", lambda v: isinstance(v, str)),
    "expected_seconds": ("a number above 0", _positive_or_none),
    "expected_megabytes": ("a number above 0", _positive_or_none),
}
