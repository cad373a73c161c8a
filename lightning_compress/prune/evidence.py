"""What a score asks for besides the weights, by the names of its parameters.

Of the task loss, in each entry of the *masked* weight, where it is masked too, as `[units, size]`:

- `gradient`: its gradient, the mean over batches;
- `squared_gradient`: the square of each batch's gradient, the mean over batches;
- `hessian_gradient`: H g, the Hessian's product with the mean gradient;
- `hessian`: the Hessian's diagonal, estimated with 16 random vectors of signs for each batch;
- `squared_change` [units, 1]: the square of what each batch's loss changes by, to first order, as the unit goes, the
  sum of w g; the mean over batches. Of channels and blocks with all that is masked with their weights: in front of a
  batch norm, which undoes every scaling, those change nothing;
- `movement`: the sum of -w g over the training steps so far, with the gradients that the optimizer was given.

Of channels: `features` [units, samples, rows, columns], what the first layer that reads them takes in; `norm`
[units, norms], the scales of their batch norms; `reading` [units, size], the weights by which layers read them.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.core import surgery
from lightning_compress.core.curvature import derivable
from lightning_compress.core.rng import rng_state, set_rng_state
from lightning_compress.core.weight import Weight
from lightning_compress.prune import slopes
from lightning_compress.prune.patterns import OfChannels, Pattern, masked_weight, side_by_side, weights_of

Score = Callable[..., Tensor]
Loss = Callable[[Any, Any], Tensor]

_OF_CHANNELS = ("features", "norm", "reading")
_ALL = (*slopes.KINDS, "squared_change", "movement", *_OF_CHANNELS)
_FROM_DATA = frozenset((*slopes.KINDS, "squared_change", "features"))


def asked(score: Score) -> frozenset[str]:
    """The evidence that `score` asks for: its parameters after the first.

    Raises:
        ValueError: one that must be given and that nobody has.

    >>> sorted(asked(lambda weight, gradient, power=2: (weight * gradient).abs().sum(1) ** power))
    ['gradient']
    """
    _, *others = inspect.signature(score).parameters.values()
    for parameter in others:
        if (
            parameter.name not in _ALL
            and parameter.default is parameter.empty
            and parameter.kind < parameter.VAR_KEYWORD
        ):
            raise ValueError(
                f"Prune: the score {getattr(score, '__name__', score)!r} asks for {parameter.name!r}; "
                f"there is {', '.join(_ALL)}, or give it a default"
            )
    return frozenset(parameter.name for parameter in others) & frozenset(_ALL)


def scored(score: Score, weights: dict[str, Tensor], evidence: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `score` says of each unit of each name.

    Raises:
        ValueError: not one number for each, or NaN where the weights are none.

    >>> scored(lambda weight: weight.sum(1), {"a": torch.ones(2, 3)}, {})
    {'a': tensor([3., 3.])}
    """
    found = {}
    for name, weight in weights.items():
        told = score(weight, **{kind: values[name] for kind, values in evidence.items()}).float()
        fits = told.shape == weight.shape[:1]
        if not fits or (bool(told.sum().isnan()) and not bool(weight.sum().isnan())):
            raise ValueError(
                f"Prune: expected of score {getattr(score, '__name__', score)!r} one number for each of {len(weight)} "
                f"units of {name!r}; got {'NaN' if fits else f'the shape {tuple(told.shape)}'}"
            )
        found[name] = told
    return found


@final
class Evidence(nn.Module):
    """Gathers for `score` what it asks for, from batches that it is shown; nothing when it asks for nothing.

    `loss(outputs, targets)` is the task's. Where a score that masks move by later asks for more, it is one of `others`.

    >>> Evidence(abs, nn.functional.cross_entropy).from_data
    False
    """

    def __init__(self, score: Score, loss: Loss, others: Sequence[Score] = ()) -> None:
        super().__init__()
        self.asked = frozenset[str]().union(*map(asked, (score, *others)))
        self.name = ", ".join(getattr(one, "__name__", repr(one)) for one in (score, *others))
        self._loss = loss
        #: Whether masks moved by movement before there was any.
        self.blind = False
        self._shown: list[tuple[Any, Any]] = []
        self._followed: list[Weight] = []
        self._held: list[Tensor] = []

    @property
    def from_data(self) -> bool:
        """Whether it needs batches."""
        return bool(self.asked & _FROM_DATA)

    def attach(self, pattern: Pattern) -> None:
        """See that `pattern` can give what is asked for, and make room for what is added up.

        Raises:
            ValueError: it cannot.
        """
        of_channels = sorted(self.asked & set(_OF_CHANNELS))
        if of_channels and not isinstance(pattern, OfChannels):
            raise ValueError(
                f"Prune: the score {self.name!r} asks for {of_channels[0]!r}, which only channels have; "
                "write pattern=channel, or a score of weights such as magnitude"
            )
        if "norm" in self.asked and isinstance(pattern, OfChannels):
            pattern.norms()
        if "features" in self.asked and isinstance(pattern, OfChannels):
            pattern.readers()
        if "movement" in self.asked:
            self._followed = weights_of(pattern)
            for place, weight in enumerate(self._followed):
                self.register_buffer(f"movement{place}", torch.zeros_like(weight.latent))

    def show(self, inputs: Any, targets: Any) -> None:
        """A batch to gather evidence from at the next move, before the optimizer's step where there is one."""
        if self.from_data:
            self._shown.append((inputs, targets))
        self._held = [masked_weight(weight) for weight in self._followed]

    @torch.no_grad()
    def step(self) -> None:
        """After an optimizer step: add up the movement that its gradients ask for."""
        for place, (weight, held) in enumerate(zip(self._followed, self._held, strict=False)):
            gradient = weight.latent.grad
            if gradient is not None:
                self.get_buffer(f"movement{place}").addcmul_(held, gradient, value=-1)
        self._held = []

    def forget(self) -> None:
        """Let go of the batches."""
        self._shown = []

    def gather(
        self, model: nn.Module, pattern: Pattern, seed: int, kinds: frozenset[str] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Each kind of evidence that is asked for, or those `kinds` of it, by the names of `pattern`."""
        found: dict[str, dict[str, Tensor]] = {}
        kinds = self.asked if kinds is None else kinds
        from_data = bool(kinds & _FROM_DATA)
        if from_data and not self._shown:
            raise ValueError(
                f"Prune: the score {self.name!r} needs data and has seen none; call prepare with at least one batch"
            )
        if from_data:
            with _undisturbed(model):
                found |= self._looked(model, pattern, kinds, torch.Generator().manual_seed(seed))
        if "movement" in kinds:
            moved = {weight: self.get_buffer(f"movement{place}") for place, weight in enumerate(self._followed)}
            self.blind = self.blind or not any(bool(values.any()) for values in moved.values())
            found["movement"] = pattern.view(moved.__getitem__)
        if "norm" in kinds and isinstance(pattern, OfChannels):
            found["norm"] = pattern.norms()
        if "reading" in kinds and isinstance(pattern, OfChannels):
            found["reading"] = pattern.reading()
        return found

    def _looked(
        self, model: nn.Module, pattern: Pattern, kinds: frozenset[str], generator: torch.Generator
    ) -> dict[str, dict[str, Tensor]]:
        """What the batches show."""
        found = {}
        if "squared_change" in kinds:
            found["squared_change"] = slopes.squared_change(model, pattern, self._loss, self._shown)
        wanted = [kind for kind in slopes.KINDS if kind in kinds]
        if wanted:
            weights = weights_of(pattern)
            told = slopes.slopes(model, weights, self._loss, wanted, self._shown, generator)
            for kind, values in told.items():
                found[kind] = pattern.view(dict(zip(weights, values, strict=True)).__getitem__)
        if "features" in kinds and isinstance(pattern, OfChannels):
            found["features"] = _features(model, pattern, [inputs for inputs, _ in self._shown])
        return found


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside, a pass in float32 leaves no trace: no dropout, no observers, batch norms by each batch, generators kept.

    A batch norm in training takes the batch's statistics, as the loss that is trained does, and adds them to no mean.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    tracked = [norm.track_running_stats for norm in norms]
    state = rng_state()
    kind = next(model.parameters()).device.type
    try:
        with (
            torch.enable_grad(),
            torch.autocast(kind, enabled=False),
            surgery.evaluating(model),
            derivable(model),
        ):
            for norm in norms:
                norm.training, norm.track_running_stats = True, False
            yield
    finally:
        for norm, was in zip(norms, tracked, strict=True):
            norm.track_running_stats = was
        set_rng_state(state)


def _features(model: nn.Module, pattern: OfChannels, batches: Sequence[Any]) -> dict[str, Tensor]:
    readers = pattern.readers()
    seen: dict[str, list[Tensor]] = {reader.layer: [] for reader in readers.values()}

    def note(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name].append(args[0].movedim(-1 if isinstance(layer, nn.Linear) else 1, 0))

    for inputs in batches:
        surgery.watched(model, inputs, nullcontext(), before={name: partial(note, name) for name in seen}, after={})
    found = {}
    for name, reader in readers.items():
        maps = torch.cat(seen[reader.layer], 1)  # [channels of the layer, samples, ...]
        maps = maps.reshape(*maps.shape[:2], -1, maps.shape[-1] if maps.dim() > 2 else 1)
        units = side_by_side(maps[reader.index.to(maps.device)], reader.root, 1 + int(reader.root.max()))
        found[name] = units.movedim(1, 3).flatten(3)
    return found
