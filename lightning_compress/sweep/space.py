"""The search space: which config keys a trial draws, from what, and as which overrides they are written."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

Value = bool | int | float | str | None
Compose = Callable[[Sequence[str]], Mapping[str, Any]]
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_WORDS = ("null", "true", "false", "inf", "nan")
_RANGE_KEYS = ("low", "high", "log", "step", "int", "when")


class Trial(Protocol):
    """What a space asks: the three questions of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices`."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """A number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """A whole number in [low, high]."""


@final
@dataclass(frozen=True)
class Choice:
    """One of some values.

    >>> Choice("model.width", (0.5, 1.0)).admits(0.5)
    True
    """

    path: str
    options: tuple[Value, ...]
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    def ask(self, trial: Trial) -> Value:
        """The trial's value."""
        return trial.suggest_categorical(self.path, self.options)  # type: ignore[no-any-return]

    @property
    def probes(self) -> tuple[Value, ...]:
        """Values that stand for all."""
        return self.options

    def admits(self, value: object) -> bool:
        """Whether `value` may be drawn."""
        return value in self.options


@final
@dataclass(frozen=True)
class Range:
    """A number between `low` and `high`, both included; `whole` for whole numbers, `log` for a uniform logarithm.

    >>> Range("distill.temperature", 1.0, 10.0, log=True).admits(11.0)
    False
    """

    path: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False
    when: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    def ask(self, trial: Trial) -> Value:
        """The trial's value."""
        if self.whole:
            return trial.suggest_int(self.path, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, step=self.step, log=self.log)

    @property
    def probes(self) -> tuple[Value, ...]:
        """Values that stand for all: both ends."""
        return self.low, self.high

    def admits(self, value: object) -> bool:
        """Whether `value` may be drawn."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        on_step = self.step is None or _divides(self.step, value - self.low)
        return self.low <= value <= self.high and on_step


Entry = Choice | Range
Space = tuple[Entry, ...]


def parse(space: Mapping[str, Any]) -> Space:
    """The space of a study file: each key a list of values or a mapping with low and high, `when` where conditional.

    Raises:
        ValueError: an entry that cannot be searched; the message says what to write.

    >>> [entry.path for entry in parse({"a.bits": {"low": 2, "high": 8, "int": True}, "a.kind": ["x", "y"]})]
    ['a.bits', 'a.kind']
    """
    entries: list[Entry] = []
    for path, body in space.items():
        _refuse(path)
        try:
            entry = _entry(path, body)
            _check_when(entry, {known.path: known for known in entries})
        except ValueError as error:
            raise ValueError(f"space, {path}: {error}") from None
        entries.append(entry)
    return tuple(entries)


def suggest(trial: Trial, space: Space) -> dict[str, Value]:
    """Draw a value for each entry whose condition holds, in order."""
    params: dict[str, Value] = {}
    for entry in space:
        if all(key in params and params[key] in values for key, values in entry.when):
            params[entry.path] = entry.ask(trial)
    return params


def overrides(params: Mapping[str, object]) -> list[str]:
    r"""Hydra overrides that set `params`, quoted where Hydra's grammar asks for it.

    >>> overrides({"model.width": 0.5, "name": "it's 1"})
    ['model.width=0.5', "name='it\\'s 1'"]
    """
    return [f"{path}={written(value)}" for path, value in params.items()]


def written(value: object) -> str:
    """One value in Hydra's override grammar.

    >>> written(["a", None, True, "1"])
    "[a,null,true,'1']"
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(written(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{written(item)}' for key, item in value.items())}}}"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    # Backslashes count as escapes only in front of a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"


def check(space: Space, base: Sequence[str], compose: Compose) -> None:
    """Compose every option and both ends of every range: each must be accepted, and each must change something.

    Raises:
        ValueError: a key the config does not have (nearest named), a refused value, or a knob that nothing reads.
    """
    for entry in space:
        context = [*base, *overrides(_context(entry, {known.path: known for known in space}))]
        composed: list[Mapping[str, Any]] = []
        for value in entry.probes:
            override = f"{entry.path}={written(value)}"
            try:
                composed.append(compose([*context, override]))
            except ValueError as error:
                raise ValueError(f"space, {override}: {error}") from error
            if composed[-1] in composed[:-1]:
                raise ValueError(
                    f"space, {override}: gives the same config as {entry.probes[composed.index(composed[-1])]!r}; "
                    "take one of them away, or name the key that a method reads"
                )


def check_recipe(space: Space, recipe: Mapping[str, object]) -> None:
    """Check one recipe of `enqueue`; it may leave keys out, which are then drawn.

    Raises:
        ValueError: a key or a value that the space does not have.
    """
    entries = {entry.path: entry for entry in space}
    for path, value in recipe.items():
        if path not in entries:
            near = difflib.get_close_matches(path, entries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the space has {', '.join(entries)}"
            raise ValueError(f"enqueue: {path!r} is not in the space: {hint}")
        if not entries[path].admits(value):
            raise ValueError(f"enqueue: {path}={value!r} is outside the space, {entries[path].probes}")


def _refuse(path: str) -> None:
    last = path.rpartition(".")[2]
    if last in ("seed", "seeds") or last.endswith("_seed"):
        raise ValueError(
            f"space, {path}: a seed is never searched, a lucky one would pass for a better method; "
            "list fresh seeds under confirm_seeds"
        )
    if last in ("begin", "end"):
        raise ValueError(f"space, {path}: the ramp's length is the study's, never searched; set it under base")
    if path.split(".")[0] in ("wandb", "measure", "evaluate_test"):
        raise ValueError(f"space, {path}: says how a run is measured or logged, not what is built; set it under base")


def _entry(path: str, body: object) -> Entry:
    if isinstance(body, list):
        return _choice(path, body, ())
    if not isinstance(body, dict):
        raise ValueError(f"expected a list of values or {{low: ..., high: ...}}, got {body!r}")
    when = _when(body.get("when", {}))
    known = ("options", "when") if "options" in body else _RANGE_KEYS
    for key in body:
        if key not in known:
            raise ValueError(f"unknown key {key!r}; write {', '.join(known)}")
    return _choice(path, body["options"], when) if "options" in body else _range(path, body, when)


def _choice(path: str, options: object, when: tuple[tuple[str, tuple[Value, ...]], ...]) -> Choice:
    if not isinstance(options, list) or not all(v is None or isinstance(v, bool | int | float | str) for v in options):
        raise ValueError(f"options must be a list of numbers, words, true, false or null; got {options!r}")
    if len(set(options)) != len(options):
        raise ValueError(f"an option is written twice in {options!r}")
    if len(options) < 2:
        raise ValueError(f"{options!r} leaves nothing to search; set it under base")
    return Choice(path, tuple(options), when)


def _range(path: str, body: dict[str, Any], when: tuple[tuple[str, tuple[Value, ...]], ...]) -> Range:
    low: Any = body.get("low")
    high: Any = body.get("high")
    step: Any = body.get("step")
    log, whole = body.get("log", False), body.get("int")
    if not isinstance(log, bool) or not isinstance(whole, bool | None):
        raise ValueError("log and int must be true or false")
    if not _finite(low) or not _finite(high) or not low < high:
        raise ValueError(f"needs numbers low < high, got low={low!r}, high={high!r}")
    if whole is None and isinstance(low, int) and isinstance(high, int):
        raise ValueError(f"{low} to {high} is ambiguous: write int: true for whole numbers or int: false for any")
    if whole and not all(isinstance(number, int) for number in (low, high, step or 1)):
        raise ValueError(f"int: true needs whole numbers, got low={low!r}, high={high!r}, step={step!r}")
    if log and (low <= 0 or step is not None):
        raise ValueError(f"log: true needs low > 0 and no step, got low={low!r}, step={step!r}")
    if step is not None and not (_finite(step) and step > 0 and _divides(step, high - low)):
        raise ValueError(f"step must be above 0 and divide high - low, got {step!r} for {high!r} - {low!r}")
    return Range(path, low, high, log, step, bool(whole), when)


def _when(body: object) -> tuple[tuple[str, tuple[Value, ...]], ...]:
    if not isinstance(body, dict):
        raise ValueError(f"when must be {{key: value or list of values}}, got {body!r}")
    return tuple((key, tuple(v) if isinstance(v, list) else (v,)) for key, v in body.items())


def _check_when(entry: Entry, earlier: Mapping[str, Entry]) -> None:
    for key, values in entry.when:
        if key not in earlier:
            raise ValueError(f"when names {key!r}, which is not searched above it; there is {', '.join(earlier)}")
        for value in values:
            if not earlier[key].admits(value):
                raise ValueError(f"when names {key}={value!r}, which is never drawn")


def _context(entry: Entry, known: Mapping[str, Entry]) -> dict[str, Value]:
    """Values under which `entry` is asked for."""
    context: dict[str, Value] = {}
    for key, values in entry.when:
        context |= _context(known[key], known) | {key: values[0]}
    return context


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _divides(step: float, length: float) -> bool:
    return math.isclose(length / step, round(length / step), abs_tol=1e-9)
