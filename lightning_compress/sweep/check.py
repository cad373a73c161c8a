"""Everything about a study that can be checked without training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, final

from lightning_compress.run.priced import table_of
from lightning_compress.sweep import record, space
from lightning_compress.sweep.rungs import ladder
from lightning_compress.sweep.runs import Tools
from lightning_compress.sweep.spec import StudySpec


@final
@dataclass(frozen=True)
class Checked:
    """What checking a study found out: its space, epochs of a full training, rungs, recipes of earlier studies."""

    space: space.Space
    horizon: int
    rungs: tuple[int, ...]
    warm: list[dict[str, Any]]


def check(spec: StudySpec, tools: Tools) -> Checked:
    """Compose all that the study will compose.

    Raises:
        ValueError: names what is wrong and what to write.
    """
    searched = space.parse(spec.space)
    base = tools.compose(spec.base)
    if not base["measure"].get("latency", True):
        raise ValueError("base: a study's report compares latencies: take measure.latency=false away")
    if base["measure"].get("table"):
        table_of(base["measure"])
    if base.get("trainer", {}).get("devices", 1) != 1:
        raise ValueError("base: say under launch how many processes train a run: processes: 2, or devices: 2")
    if base["seed"] in spec.confirm_seeds:
        raise ValueError(f"confirm_seeds must be fresh, but {base['seed']} is the seed of the trials themselves")
    dense = {"teacher": spec.teacher or [], **spec.baselines}
    composed = {name: _compose(tools, name, [*spec.base, *spec.dense, *differing]) for name, differing in dense.items()}
    for recipe in spec.enqueue:
        space.check_recipe(searched, recipe)
    space.check(searched, spec.base, tools.compose)
    if spec.start_dense:
        _check_starts(spec, searched, [composed[name]["model"] for name in spec.baselines], tools)
    horizon = _horizon(base)
    rungs = _rungs(spec, base, horizon)
    if rungs and not spec.baselines:
        raise ValueError("fidelity: trials that stop early are timed beside a dense baseline: name one under baselines")
    return Checked(searched, horizon, rungs, _warm(spec, searched))


def _compose(tools: Tools, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        return tools.compose(overrides)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _horizon(config: Mapping[str, Any]) -> int:
    """Epochs of a full training."""
    phases = config.get("phases") or []
    return sum(int(phase["epochs"]) for phase in phases) if phases else int(config.get("epochs", 1))


def _rungs(spec: StudySpec, base: Mapping[str, Any], horizon: int) -> tuple[int, ...]:
    fidelity = spec.stopping
    if fidelity is None:
        return ()
    for path in spec.space:
        if path in ("epochs", "phases"):
            raise ValueError(f"space, {path}: under fidelity all trials have one length; set it under base")
    phases = base.get("phases") or []
    end = max(_ends(base.get("methods", {})), default=0.0)
    elsewhere = max((place for place, phase in enumerate(phases, start=1) if phase.get("data")), default=0)
    pretrained = sum(int(phase["epochs"]) for phase in phases[:elsewhere])
    if pretrained > fidelity.ramp:
        raise ValueError(
            f"fidelity, ramp: {fidelity.ramp} epochs, but the first {pretrained} train on other data: "
            f"write ramp: {pretrained}, since accuracy says nothing before"
        )
    if not phases and round(end * horizon) > fidelity.ramp:
        raise ValueError(
            f"fidelity, ramp: {fidelity.ramp} epochs, but a schedule runs until epoch {end * horizon:g} of {horizon}: "
            f"write ramp: {round(end * horizon)}, since accuracy says little before the end of compression"
        )
    return ladder(ramp=fidelity.ramp, grace=fidelity.grace, eta=fidelity.eta, horizon=horizon)


def _ends(node: object) -> list[float]:
    """Where the schedules in a config end, as shares of the run; one that does not say ends with it."""
    if isinstance(node, Mapping):
        if str(node.get("_target_", "")).startswith("lightning_compress.core.schedule."):
            return [float(node.get("end", 1.0))] if "last" in node else []
        return [end for child in node.values() for end in _ends(child)]
    return [end for child in node for end in _ends(child)] if isinstance(node, list) else []


def _warm(spec: StudySpec, searched: space.Space) -> list[dict[str, Any]]:
    """Recipes on the fronts of earlier studies, as far as this space has their keys and values."""
    entries = {entry.path: entry for entry in searched}
    recipes: list[dict[str, Any]] = []
    for name in spec.warm_start:
        try:
            front = record.collect(Path(name)).front
        except ValueError as error:
            raise ValueError(f"warm_start: {error}") from error
        for point in front:
            recipe = {k: v for k, v in point.params.items() if k in entries and entries[k].admits(v)}
            if recipe and recipe not in recipes:
                recipes.append(recipe)
        if not recipes:
            raise ValueError(f"warm_start: no parameter on the front of {name} is in this space")
    return recipes


def _check_starts(spec: StudySpec, searched: space.Space, dense: Sequence[Any], tools: Tools) -> None:
    """Every network that can be drawn must have a dense baseline."""
    choices = [entry for entry in searched if entry.path.split(".")[0] == "model"]
    for values in product(*(entry.probes for entry in choices)):
        drawn = space.overrides({entry.path: value for entry, value in zip(choices, values, strict=True)})
        model = tools.compose([*spec.base, *drawn])["model"]
        if model not in dense:
            raise ValueError(
                f"start_dense: no baseline has the network {', '.join(drawn) or 'of base'}: add one, "
                "or write start_dense: false"
            )
