"""Runs an ordered list of methods on one model: what the LightningModule and the callback are shells over."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from lightning_compress.core import moments, surgery
from lightning_compress.core.method import Compact, Method, Step
from lightning_compress.core.stored import Stored
from lightning_compress.core.tap import Taps


class NoEffectError(RuntimeError):
    """A method was asked to act and did not."""


@final
class Batches:
    """Batches of a loader as the methods take them, from the first on at each pass.

    >>> batches = Batches([1, 2], lambda batch: batch * 10)
    >>> list(batches), list(batches)
    ([10, 20], [10, 20])
    """

    def __init__(self, loader: Iterable[Any], convert: Callable[[Any], Any]) -> None:
        self._loader, self._convert = loader, convert

    def __iter__(self) -> Iterator[Any]:
        return map(self._convert, self._loader)


@final
class Compressor(nn.Module):
    """The methods of one phase, in stage order, and how far the phase has come.

    Raises:
        ValueError: the list is out of stage order; the message gives the right one.

    >>> Compressor([]).progress
    0.0
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        super().__init__()
        _check_order(methods)
        self.methods = nn.ModuleList(methods)
        self.horizon = 1
        self.steps = 0
        self.prepared = False
        self._unsettled = list(range(len(methods)))
        self._taps: Taps | None = None

    def get_extra_state(self) -> dict[str, Any]:
        """Progress, for the checkpoint."""
        return {"steps": self.steps, "prepared": self.prepared, "horizon": self.horizon}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Progress, from the checkpoint."""
        self.steps, self.prepared, self.horizon = state["steps"], state["prepared"], state["horizon"]

    @property
    def progress(self) -> float:
        """Optimizer steps done, as a share of the phase's full horizon."""
        return min(1.0, self.steps / self.horizon)

    def _all(self) -> list[Method]:
        return list(self.methods)  # type: ignore[arg-type]

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Let each method change the model; returns the model to train.

        Raises:
            ValueError: the model computes a weight by something that cannot say what is on disk, or a method objects.
        """
        _check_weights(model)
        for method in self._all():
            model = method.attach(model, example)
        names = dict.fromkeys(name for method in self._all() for name in method.taps)
        self._taps = Taps(model, names) if names else None
        return model

    def prepare(self, model: nn.Module, batches: Iterable[Any], *, trains: bool = True) -> None:
        """Show each method data, once; under DDP rank 0's outcome is every rank's.

        Where nothing `trains`, the schedules are at their ends from the start: what they ask for has to happen here.

        Raises:
            NoEffectError: without training, a method did nothing.
        """
        if self.prepared:
            return
        if not trains:
            self.steps = self.horizon
        for method in self._all():
            method.prepare(model, batches)
            method.update(model, self.progress)
        if dist.is_available() and dist.is_initialized():
            for tensor in [*model.parameters(), *model.buffers(), *self.parameters(), *self.buffers()]:
                dist.broadcast(tensor.detach(), src=0)
        self.prepared = True
        if not trains:
            self._check_effects(model, self.progress)
            idle = ", ".join(type(self._all()[index]).__name__ for index in self._unsettled)
            if idle:
                raise NoEffectError(f"{idle} had no effect: it acts in training, and there are no epochs")

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the methods' own learnables."""
        return [group for method in self._all() for group in method.param_groups()]

    def features(self) -> dict[str, Tensor]:
        """What the tapped submodules put out in the last forward pass."""
        return dict(self._taps.features) if self._taps else {}

    def step(self, batch: Sequence[Any], outputs: Any, task_loss: Tensor, model: nn.Module) -> Step:
        """What the methods are shown of a training step; `batch` is (inputs, targets), then maybe index and view."""
        inputs, targets, *place = batch
        return Step(
            inputs=inputs,
            targets=targets,
            outputs=outputs,
            task_loss=task_loss,
            progress=self.progress,
            model=model,
            index=place[0] if place else None,
            view=place[1] if len(place) > 1 else None,
            features=self.features(),
        )

    def task_weight(self) -> float | Tensor:
        """Factor on the task loss."""
        weight: float | Tensor = 1.0
        for method in self._all():
            weight = weight * method.task_weight(self.progress)
        return weight

    def loss(self, step: Step) -> dict[str, Tensor]:
        """Extra terms of all methods by name; a name used twice is an error."""
        terms: dict[str, Tensor] = {}
        for method in self._all():
            for name, term in method.loss(step).items():
                if name in terms:
                    raise ValueError(f"two methods both call a loss term {name!r}; give one of them another name")
                terms[name] = term
        return terms

    def update(self, model: nn.Module, optimizers: Iterable[Optimizer] = ()) -> dict[str, float]:
        """Act after a step of `optimizers`: count it, let each method move, check that what was asked for happened.

        Raises:
            NoEffectError: a schedule asks for something and the method did nothing.
        """
        self.steps += 1
        progress = self.progress
        logs: dict[str, float] = {}
        for method in self._all():
            logs.update(method.update(model, progress))
            for optimizer, parameter in itertools.product(optimizers, method.renewed()):
                optimizer.state.pop(parameter, None)
            for optimizer, (parameter, entries) in itertools.product(optimizers, method.revived()):
                moments.forget(optimizer, parameter, entries)
        if self._unsettled:
            self._check_effects(model, progress)
        return logs

    def _check_effects(self, model: nn.Module, progress: float) -> None:
        for index in list(self._unsettled):
            method = self._all()[index]
            if not method.settled(progress):
                continue
            why = method.missing_effect(model, progress)
            if why is not None:
                raise NoEffectError(f"{type(method).__name__} had no effect by step {self.steps}: {why}")
            self._unsettled.remove(index)

    def finalize(self, model: nn.Module, example: Any) -> Compact:
        """The deployed model; `model` itself stays as it is and can be trained on."""
        folded = surgery.plain(model).eval().cpu().float().requires_grad_(False)
        folded = folded.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        stored = read_stored(model)
        # Folded where the model lives, stored on the CPU: on another device the last bit may differ.
        unknown = folded.load_state_dict({name: s.value for name, s in stored.items()}, strict=False).unexpected_keys
        assert not unknown, f"stored tensors that the plain model does not have: {unknown}"
        compact = Compact(folded, stored)
        for method in self._all():
            compact = method.finalize(compact, example)
        return compact


def _check_order(methods: Sequence[Method]) -> None:
    stages = [method.stage for method in methods]
    if stages != sorted(stages):
        got = ", ".join(f"{type(m).__name__} ({m.stage.name})" for m in methods)
        right = ", ".join(type(m).__name__ for m in sorted(methods, key=lambda m: m.stage))
        raise ValueError(f"methods out of stage order: got [{got}], write [{right}]")


def _check_weights(model: nn.Module) -> None:
    """See that whatever computes a weight, as weight norm does, can say what is on disk."""
    for layer, module in model.named_modules():
        stacks: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
        for name, stack in stacks.items():
            foreign = [type(step).__name__ for step in stack if not hasattr(step, "store")]
            if foreign:
                raise ValueError(
                    f"{foreign[0]} computes {surgery.dotted(layer, name)!r}: expected a plain weight, which training "
                    f"changes; call torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r}) before"
                )


def _raw(tensor: Tensor) -> Tensor:
    copied = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return copied.float() if copied.is_floating_point() else copied


@torch.no_grad()
def read_stored(model: nn.Module) -> dict[str, Stored]:
    """What each tensor of `model` is on disk, by its plain name: raw, then what each parametrization makes of it."""
    found: dict[str, Stored] = {}
    for name, (module, attribute) in surgery.own_names(model).items():
        if not parametrize.is_parametrized(module, attribute):
            found[name] = Stored(_raw(getattr(module, attribute)))
            continue
        stacks = module.parametrizations
        assert isinstance(stacks, nn.ModuleDict)
        stack: Any = stacks[attribute]
        stored = Stored(_raw(stack.original))
        for step in stack:
            if not hasattr(step, "store"):
                raise ValueError(f"{type(step).__name__} on {name!r} has no `store`: it cannot say what is on disk")
            stored = step.store(stored)
        found[name] = stored
    return found
