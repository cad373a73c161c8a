import copy
from dataclasses import replace
from typing import Any

import pytest

from lightning_compress.export import chooser
from lightning_compress.run.config import compose
from lightning_compress.run.settings import _FORMS, _FREE, check, trainer_arguments
from lightning_compress.run.targets import ConfigError

DEFAULTS = compose()


def _with(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(DEFAULTS)
    node = config
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return config


def _without(key: str) -> dict[str, Any]:
    config = _with(key, None)
    node = config
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node[parent]
    del node[leaf]
    return config


def test_the_defaults_are_right() -> None:
    check(DEFAULTS, DEFAULTS)


def test_every_plain_setting_has_a_form() -> None:
    def leaves(node: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for key, value in node.items():
            below = isinstance(value, dict) and "_target_" not in value and key not in _FREE
            found += leaves(value, f"{prefix}{key}.") if below else [f"{prefix}{key}"]
        return found

    assert set(leaves(DEFAULTS)) == set(_FORMS)


@pytest.mark.parametrize("key", list(_FORMS))
def test_a_setting_that_is_gone_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} must be .*; got nothing$"):
        check(_without(key), DEFAULTS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", True),
        ("epochs", 1.5),
        ("epochs", -1),
        ("teacher.epochs", -1),
        ("validate_every", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("label_smoothing", 1.0),
        ("label_smoothing", "0.1"),
        ("evaluate_test", "yes"),
        ("measure.latency", 1),
        ("measure.rounds", 0),
        ("measure.runtimes", "openvino"),
        ("speed.threads", 0),
        ("speed.compile", "auto"),
        ("name", ""),
        ("name", 5),
        ("weights", 5),
        ("allow", "mine"),
        ("wandb.tags", [1]),
        ("model", None),
        ("model", "resnet20"),
        ("scheduler", "cosine"),
        ("methods", {"prune": {"sparsity": 0.5}}),
        ("methods", None),
        ("phases", {"epochs": 1}),
        ("trainer", None),
    ],
)
def test_values_of_a_wrong_form(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{key} must be "):
        check(_with(key, value), DEFAULTS)


@pytest.mark.parametrize(
    ("key", "value"),
    [("speed.threads", 2), ("weights", "a.pt"), ("scheduler", None), ("wandb.group", "g"), ("seed", 0)],
)
def test_values_of_a_right_form(key: str, value: Any) -> None:
    check(_with(key, value), DEFAULTS)


def test_keys_that_nothing_reads() -> None:
    with pytest.raises(ConfigError, match="no 'epoch' in the configuration: did you mean 'epochs'"):
        check({**DEFAULTS, "epoch": 1}, DEFAULTS)
    with pytest.raises(ConfigError, match=r"no 'measure\.round' in measure of the configuration: did you mean"):
        check(_with("measure.round", 1), DEFAULTS)


def test_numbers_are_finite() -> None:
    with pytest.raises(ConfigError, match=r"^optimizer\.lr must be a finite number; got inf"):
        check(_with("optimizer.lr", float("inf")), DEFAULTS)
    with pytest.raises(ConfigError, match=r"^phases\.0\.epochs must be a finite number; got nan"):
        check(_with("phases", [{"epochs": float("nan")}]), DEFAULTS)


def test_trainer_arguments() -> None:
    assert {"strategy", "devices", "gradient_clip_val", "accumulate_grad_batches"} <= set(trainer_arguments())
    check(_with("trainer.gradient_clip_val", 1.0), DEFAULTS)
    with pytest.raises(ConfigError, match=r"trainer\.logger is decided by the run$"):
        check(_with("trainer.logger", True), DEFAULTS)
    with pytest.raises(ConfigError, match=r"trainer\.precision is decided by the run: set speed\.precision instead"):
        check(_with("trainer.precision", "16"), DEFAULTS)


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (["prune"], "must be like"),
        ({"epoch": 1}, "did you mean 'epochs'"),
        ({"epochs": -1}, "a count from 0 up; got -1"),
        ({"methods": "prune"}, "must be a list of names; got 'prune'"),
        ({"methods": ["quantize"]}, "no 'quantize' in the methods that are on: it has prune"),
        ({"keep_optimizer": True}, "the first phase has none to keep; got True"),
        ({"keep_optimizer": 1}, "must be true or false"),
    ],
)
def test_phases(phase: Any, said: str) -> None:
    on = {"prune": {"_target_": "x"}, "quantize": None}
    with pytest.raises(ConfigError, match=said):
        check({**DEFAULTS, "methods": on, "phases": [phase]}, DEFAULTS)
    check(
        {**DEFAULTS, "methods": on, "phases": [{"methods": []}, {"methods": ["prune"], "keep_optimizer": True}]},
        DEFAULTS,
    )


def test_what_is_timed_must_be_exported() -> None:
    assert compose(["measure.latency=false"])["measure"]["onnx"] is False
    assert compose(["measure.latency=false", "measure.onnx=true"])["measure"]["onnx"] is True
    with pytest.raises(ConfigError, match=r"set measure\.onnx=true, or measure\.latency=false too"):
        compose(["measure.onnx=false"])


def test_runtimes_are_known_and_there_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    check(_with("measure.runtimes", ["onnxruntime/float"]), DEFAULTS)
    gone = [replace(one, why_not=lambda: "not installed") for one in chooser.RUNTIMES if one.family == "openvino"]
    monkeypatch.setattr(chooser, "RUNTIMES", [*chooser.named(["onnxruntime"]), *gone])
    asked = _with("measure.runtimes", ["onnxruntime", "openvino"])
    with pytest.raises(ConfigError, match=r"^measure\.runtimes: openvino cannot run here: not installed"):
        check(asked, DEFAULTS)
    asked["measure"] |= {"onnx": False, "latency": False}
    check(asked, DEFAULTS)  # nothing will run on it
    asked["measure"]["runtimes"] = ["openvin"]
    with pytest.raises(ConfigError, match=r"^measure\.runtimes: no runtime 'openvin': did you mean 'openvino'"):
        check(asked, DEFAULTS)
