"""The teacher: frozen, known by hash, never in a checkpoint; outputs kept where they stay the same."""

import hashlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_compress.core.compiled import compiled
from lightning_compress.core.inputs import arguments, device_of, rows
from lightning_compress.core.method import Step
from lightning_compress.core.tap import Taps

Mode = Literal["eval", "train_bn"]


def fingerprint(model: nn.Module) -> str:
    """Sixteen hex digits of the SHA-256 over names, shapes and values of every tensor.

    >>> fingerprint(nn.Identity())
    'e3b0c44298fc1c14'
    """
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@final
class Teacher:
    """Runs a frozen `model` under `no_grad`, on the device of what it is given; methods may have one together.

    In `mode` "eval" batch norms take the statistics of their training, in "train_bn" each batch's own (as in Heo 2019,
    arXiv 1904.01866); the teacher stays the same in both. With `bf16` it runs under autocast to bfloat16.
    With `cache`, the output for each view of a sample is computed once and kept: correct only while views come back.
    `outputs` are kept from the start, and the model never runs: one tensor [samples, ...] for each random view, counted
    from 1, or a single one if no random transform touches the samples. With `compile` it runs compiled. What the
    submodules that `tap` names put out in the last batch is in `features`.

    Raises:
        ValueError: `cache` is on and a batch was changed at random, or the teacher has several outputs; `outputs`
            without `cache`; an unknown `mode`, or "train_bn" with `cache`.

    >>> teacher = Teacher(nn.Linear(2, 3), cache=True)
    >>> teacher(torch.ones(1, 2), torch.tensor([0]), torch.tensor([0])).shape
    torch.Size([1, 3])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        cache: bool = False,
        outputs: Sequence[Tensor] = (),
        compile: bool = False,
        mode: Mode = "eval",
        bf16: bool = False,
    ) -> None:
        if outputs and not cache:
            raise ValueError("teacher: outputs are what cache=true keeps; write cache=true, or leave outputs away")
        if mode not in get_args(Mode) or (mode == "train_bn" and cache):
            raise ValueError(
                "teacher: mode is 'eval' or, without a cache, 'train_bn', which sees each sample among others; "
                f"got {mode=}, {cache=}"
            )
        self.hash = fingerprint(model)
        self.model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if mode == "train_bn":
            for norm in [module for module in model.modules() if isinstance(module, _BatchNorm)]:
                norm.train()
                norm.track_running_stats = False  # what it learned of its training data stays as it is
        self._call: Callable[..., Any] = compiled(self.model) if compile else self.model
        self.cache, self.bf16 = cache, bf16
        self._outputs = list(outputs)
        self._kept: dict[int, _Kept] = {}
        self._device: torch.device | None = None
        self._taps: dict[str, Taps] = {}
        self._step: Callable[[], Step | None] = lambda: None
        self._found: Any = None

    def must_differ(self, student: nn.Module, *, owner: str) -> None:
        """See that a student is not, in part, its own teacher.

        Raises:
            ValueError: it is; the message begins with `owner`.
        """
        if {id(p) for p in student.parameters()} & {id(p) for p in self.model.parameters()}:
            raise ValueError(f"{owner}: teacher and student share parameters; give the teacher a copy of its own")

    def tap(self, names: Iterable[str]) -> None:
        """Keep in `features` what the submodules called `names` put out.

        Raises:
            ValueError: there is none of a name.
        """
        for name in names:
            if name not in self._taps:
                self._taps[name] = Taps(self.model, [name])

    @property
    def features(self) -> dict[str, Tensor]:
        """What the tapped submodules put out in the last batch."""
        return {name: taps.features[name] for name, taps in self._taps.items()}

    def of(self, step: Step) -> Any:
        """The outputs for a step of training, computed once for all that ask."""
        if self._step() is not step:
            self._found = self(step.inputs, step.index, step.view)
            self._step = weakref.ref(step)
        return self._found

    @torch.no_grad()
    def __call__(self, inputs: Any, index: Tensor | None = None, view: Tensor | None = None) -> Any:
        """The teacher's outputs for a batch."""
        device = device_of(inputs)
        if self._device != device:
            self._move(device)
        if not self.cache:
            return self._run(inputs)
        if index is None or view is None or bool((view < 0).any()):
            raise ValueError(
                "teacher: cache=true needs batches with a sample index, and views that come back; got ones that are "
                "drawn anew, or no index: write data.views=4, say, turn the augmentation off, or write cache=false"
            )
        return self._cached(inputs, index, view)

    def _run(self, inputs: Any) -> Any:
        args, named = arguments(inputs)
        if not self.bf16:
            return self._call(*args, **named)
        with torch.autocast(device_of(inputs).type, dtype=torch.bfloat16):
            return self._call(*args, **named)

    def _move(self, device: torch.device) -> None:
        self._device, self._kept = device, {}
        self._outputs = [outputs.to(device) for outputs in self._outputs]
        if not self._outputs:
            self.model.to(device)

    def _cached(self, inputs: Any, index: Tensor, view: Tensor) -> Tensor:
        first = int(view[0])
        if bool((view == first).all()):
            if self._outputs:
                if first > len(self._outputs):
                    raise ValueError(f"teacher: a batch in view {first}, and outputs of {len(self._outputs)} views")
                return self._outputs[max(first - 1, 0)][index]
            return self._kept.setdefault(first, _Kept(self._run))(inputs, index)
        outputs = [
            self._cached(rows(inputs, slice(at, at + 1)), index[at : at + 1], view[at : at + 1])
            for at in range(len(view))
        ]
        return torch.cat(outputs)


@final
class _Kept:
    """What `run` puts out for one view of each sample, by the sample's index."""

    def __init__(self, run: Callable[[Any], Any]) -> None:
        self._run = run
        self._outputs = torch.empty(0)
        self._known = torch.empty(0, dtype=torch.bool)

    def __call__(self, inputs: Any, index: Tensor) -> Tensor:
        """The outputs, computed for those that are new."""
        size = 1 + int(index.max())
        if size > len(self._known):
            self._known = _grown(self._known, torch.zeros(2 * size, dtype=torch.bool, device=device_of(inputs)))
        new = ~self._known[index]
        if bool(new.any()):
            outputs = self._run(rows(inputs, new))
            if not isinstance(outputs, Tensor):
                raise ValueError("Distill: cache=true keeps one output, and the teacher has several: write cache=false")
            if len(self._outputs) < len(self._known):
                self._outputs = _grown(self._outputs, outputs.new_zeros(len(self._known), *outputs.shape[1:]))
            self._outputs[index[new]] = outputs.to(self._outputs.dtype)
            self._known[index[new]] = True
        return self._outputs[index]


def as_teacher(model: nn.Module | Teacher) -> Teacher:
    """A network becomes a teacher; a teacher stays what it is.

    >>> as_teacher(nn.Linear(2, 3)).cache
    False
    """
    return model if isinstance(model, Teacher) else Teacher(model)


def _grown(old: Tensor, new: Tensor) -> Tensor:
    """`new`, with what `old` held at its start."""
    if len(old):
        new[: len(old)] = old
    return new
