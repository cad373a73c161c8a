from collections.abc import Sequence
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_compress.sweep import space


class Fixed:
    """A trial that answers from a table and notes what it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, list[tuple[Any, ...]]()

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append((name, tuple(choices)))
        return self.answers[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        self.asked.append((name, low, high, step, log))
        return float(self.answers[name])

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        self.asked.append((name, low, high, step, log))
        return int(self.answers[name])


SPACE = {
    "prune": ["gradual", "none"],
    "prune.last": {"low": 0.2, "high": 0.8, "step": 0.1, "when": {"prune": "gradual"}},
    "prune.pattern": {"options": ["channel", "unstructured"], "when": {"prune": ["gradual"]}},
    "bits": {"low": 2, "high": 8, "int": True},
    "temperature": {"low": 1.0, "high": 10.0, "log": True},
}


def test_each_entry_asks_its_own_question() -> None:
    trial = Fixed({"prune": "gradual", "prune.last": 0.3, "prune.pattern": "channel", "bits": 4, "temperature": 2.0})
    assert space.suggest(trial, space.parse(SPACE)) == trial.answers
    assert trial.asked == [
        ("prune", ("gradual", "none")),
        ("prune.last", 0.2, 0.8, 0.1, False),
        ("prune.pattern", ("channel", "unstructured")),
        ("bits", 2, 8, 1, False),
        ("temperature", 1.0, 10.0, None, True),
    ]


def test_a_condition_that_does_not_hold_asks_nothing() -> None:
    trial = Fixed({"prune": "none", "bits": 4, "temperature": 2.0})
    assert space.suggest(trial, space.parse(SPACE)) == trial.answers


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 2, "high": 2, "int": True}, "needs numbers low < high, got low=2, high=2"),
        ({"low": 2.0}, "got low=2.0, high=None"),
        ({"low": float("nan"), "high": 1.0}, "needs numbers low < high"),
        ({"low": 0.0, "high": 1.0, "log": True}, "log: true needs low > 0"),
        ({"low": 1.0, "high": 2.0, "log": True, "step": 0.5}, "log: true needs low > 0 and no step"),
        ({"low": 2, "high": 8}, "ambiguous: write int: true"),
        ({"low": 2.5, "high": 8, "int": True}, "int: true needs whole numbers"),
        ({"low": 0.0, "high": 1.0, "step": 0.3}, "step must be above 0 and divide high - low"),
        ({"low": 0.0, "high": 1.0, "lgo": True}, "unknown key 'lgo'; write low, high, log"),
        ({"low": 0.0, "high": 1.0, "when": {"other": 1}}, "when names 'other', which is not searched above it"),
        ([1], "leaves nothing to search"),
        ([1, 1.0], "written twice"),
        ([[1], [2]], "options must be a list of numbers, words"),
        (3, "expected a list of values or {low"),
    ],
)
def test_entries_that_cannot_be_searched(entry: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        space.parse({"bits": entry})
    assert str(caught.value).startswith("space, bits: ")
    assert message in str(caught.value)


def test_a_condition_on_a_value_that_is_never_drawn() -> None:
    with pytest.raises(ValueError, match="prune='never', which is never drawn"):
        space.parse({"prune": ["a", "b"], "x": {"options": [1, 2], "when": {"prune": "never"}}})


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("seed", "a seed is never searched"),
        ("data.split_seed", "a seed is never searched"),
        ("methods.prune.sparsity.end", "ramp's length is the study's"),
        ("measure.rounds", "how a run is measured"),
        ("wandb.name", "how a run is measured or logged"),
    ],
)
def test_keys_that_are_refused(path: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        space.parse({path: [1, 2]})


@pytest.mark.parametrize(
    "value",
    [
        0.1, 1e-05, -3, True, None, "word", "null", "True", "1", "1e3", "", "two words", "it's", "a=b,c", "[x]", "{a}",
        "back\\", "back\\'quote", "\\\\", 'say "x"', "/a-b/c_1.onnx", "/a b/c,d", "inf", "12ab-trial-0", "ä",
        [1, "a b", None], {"_target_": "a.B", "width": 2, "names": ["x", "it's"], "inner": {"deep": False}},
    ],
)  # fmt: skip
def test_hydra_reads_back_what_is_written(value: object) -> None:
    (override,) = space.overrides({"some.key": value})
    parsed = OverridesParser.create().parse_override(override)
    assert parsed.key_or_group == "some.key"
    read = parsed.value()
    assert read == value
    assert type(read) is type(value)


def _compose(overrides: Sequence[str]) -> dict[str, str]:
    config = {"prune": "none", "bits": "8", "dead": "0"}
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "prune" and value == "gradual":
            config["prune.last"] = "0.5"
        if key not in config:
            raise ValueError(f"no {key!r}, did you mean 'bits'?")
        config[key] = value if key != "dead" else "0"
    return config


def test_every_value_is_composed_in_its_context() -> None:
    good = {"prune": ["gradual", "none"], "prune.last": {"low": 0.1, "high": 0.9, "when": {"prune": "gradual"}}}
    space.check(space.parse(good), [], _compose)
    unconditional = {"prune.last": {"low": 0.1, "high": 0.9}}
    with pytest.raises(ValueError, match=r"no 'prune\.last'"):
        space.check(space.parse(unconditional), [], _compose)
    with pytest.raises(ValueError, match="space, bitz=2: no 'bitz', did you mean 'bits'"):
        space.check(space.parse({"bitz": [2, 4]}), [], _compose)


def test_a_knob_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="dead=2: gives the same config as 1"):
        space.check(space.parse({"dead": [1, 2]}), [], _compose)


def test_recipes_must_lie_in_the_space() -> None:
    parsed = space.parse(SPACE)
    space.check_recipe(parsed, {"bits": 4, "prune.last": 0.3})
    with pytest.raises(ValueError, match="'bit' is not in the space: did you mean 'bits'"):
        space.check_recipe(parsed, {"bit": 4})
    for key, value in (("bits", 9), ("bits", 4.0), ("bits", True), ("prune.last", 0.35), ("prune", "all")):
        with pytest.raises(ValueError, match="is outside the space"):
            space.check_recipe(parsed, {key: value})
