"""Every runtime that a deployed model can run on, timed side by side on this machine; the fastest right one wins."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch.utils._pytree import tree_leaves, tree_map

from lightning_compress.core.inputs import call
from lightning_compress.core.method import Compact
from lightning_compress.export import latency, onnx, openvino, pytorch, runtime, verify
from lightning_compress.export.latency import Latency

Session = Callable[[Any], Any]


@final
@dataclass(frozen=True)
class Deployable:
    """A model to run: its ONNX file, and the finalized PyTorch model that it is of, where that is at hand."""

    onnx: Path
    compact: Compact | None = None

    @property
    def has_integers(self) -> bool:
        """Whether there is anything in the file that integer kernels could compute."""
        return b"DequantizeLinear" in self.onnx.read_bytes()

    @torch.no_grad()
    def expected(self, batch: Any) -> Any:
        """What the model puts out: by PyTorch, or by its ONNX operators one by one."""
        if self.compact is not None:
            return call(self.compact.model, tree_map(torch.from_numpy, batch))
        return tree_map(torch.from_numpy, runtime.session(self.onnx, kernels="float")(batch))

    def tolerance(self) -> float:
        """As `verify.tolerance`."""
        if self.compact is not None:
            return verify.tolerance(self.compact.model)
        return verify.explained(onnx.activation_bits(self.onnx))


Need = Literal["file", "integers", "pytorch"]


@final
@dataclass(frozen=True)
class Runtime:
    """A way to run a model.

    `title` is its name in a record; `why_not` says why it is not on this machine, None where it is; `open` takes a
    model and a number of threads. What `needs` a PyTorch model cannot run a file, and what needs integers makes no
    difference to a model without. `slack` is what the format of its numbers adds to the tolerance.
    """

    name: str
    title: Callable[[], str]
    why_not: Callable[[], str | None]
    open: Callable[[Deployable, int], Session]
    needs: Need = "file"
    slack: float = 0.0

    @property
    def family(self) -> str:
        """What it is asked for by, with its likes."""
        return self.name.partition("/")[0]


def _of_compact(
    function: Callable[[Compact, int], Session], title: str, why_not: Callable[[], str | None]
) -> dict[str, Any]:
    def opened(model: Deployable, threads: int) -> Session:
        if model.compact is None:
            raise ValueError("it runs PyTorch models, and this is an ONNX file: give the packed .lcz file")
        return function(model.compact, threads)

    return {"title": lambda: f"{pytorch.name}, {title}", "why_not": why_not, "open": opened, "needs": "pytorch"}


def _on_gpu(provider: runtime.Provider, title: str) -> dict[str, Any]:
    return {
        "title": lambda: f"{runtime.name}, {title}",
        "why_not": partial(runtime.why_not, provider),
        "open": lambda model, threads: runtime.session(model.onnx, threads, provider=provider),
    }


#: bf16 has 8 significant bits, so a number is off by up to 2^-9 of itself, and the errors of layers come together.
_BF16 = 2.0**-6

RUNTIMES = (
    Runtime(
        "onnxruntime/integer",
        lambda: runtime.name,
        lambda: None,
        lambda model, threads: runtime.session(model.onnx, threads),
    ),
    Runtime(
        "onnxruntime/float",
        lambda: f"{runtime.name}, float kernels",
        lambda: None,
        lambda model, threads: runtime.session(model.onnx, threads, kernels="float"),
        needs="integers",
    ),
    Runtime(
        "openvino/f32",
        openvino.name,
        partial(openvino.why_not, "f32"),
        lambda model, threads: openvino.session(model.onnx, threads),
    ),
    Runtime(
        "openvino/bf16",
        lambda: f"{openvino.name()}, bf16",
        partial(openvino.why_not, "bf16"),
        lambda model, threads: openvino.session(model.onnx, threads, precision="bf16"),
        slack=_BF16,
    ),
    Runtime("torch/eager", **_of_compact(pytorch.eager, "eager", lambda: None)),
    Runtime("torch/compiled", **_of_compact(pytorch.compiled, "compiled", pytorch.why_not)),
    Runtime("cuda", **_on_gpu("CUDAExecutionProvider", "CUDA")),
    Runtime("tensorrt", **_on_gpu("TensorrtExecutionProvider", "TensorRT")),
)
#: What is asked for where nobody asks.
DEFAULT = ("onnxruntime",)


def named(names: Sequence[str]) -> list[Runtime]:
    """The runtimes called `names`, here or not: `openvino/f32` is one, `openvino` its family, `all` every one.

    Raises:
        ValueError: there is none of that name; the nearest is named.

    >>> [one.name for one in named(["onnxruntime", "tensorrt"])]
    ['onnxruntime/integer', 'onnxruntime/float', 'tensorrt']
    """
    known = dict.fromkeys([*(one.family for one in RUNTIMES), *(one.name for one in RUNTIMES), "all"])
    if not names:
        raise ValueError(f"expected at least one runtime of {', '.join(known)}")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"no runtime {name!r}: {hint}")
    return [one for one in RUNTIMES if {"all", one.family, one.name} & set(names)]


def here(names: Sequence[str]) -> list[Runtime]:
    """The runtimes called `names` that this machine has.

    Raises:
        ValueError: there is none of that name, or it is not on this machine; says what is missing.
    """
    found = [one for one in named(names) if one.why_not() is None]
    for name in names:
        if not set(named([name])) & set(found):
            raise ValueError(f"{name} cannot run here: {named([name])[0].why_not()}")
    return found


@final
@dataclass(frozen=True)
class Race:
    """Latencies by model and runtime; ratios are to the first model at its fastest.

    `gaps` are the `relative_error` of each beside the model itself; `left_out` says why others were not timed.
    """

    latencies: dict[tuple[str, str], Latency]
    gaps: dict[tuple[str, str], float]
    left_out: dict[tuple[str, str], str] = field(default_factory=dict)

    def fastest(self, model: str) -> Latency:
        """The winner of a model; its `runtime` says which one it is."""
        return min((found for (of, _), found in self.latencies.items() if of == model), key=lambda found: found.ratio)


def race(
    models: Mapping[str, Deployable], runtimes: Sequence[Runtime], batch: Any, *, threads: int, rounds: int
) -> Race:
    """Time every model on every one of `runtimes`, all in one call, each beside all others.

    A runtime that cannot open a model, or computes something else than it by more than rounding explains, is left out.

    Raises:
        FileNotFoundError: a model's file is not there.
        ValueError: no runtime is left for a model, or its file is no ONNX file.
    """
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    gaps: dict[tuple[str, str], float] = {}
    left_out: dict[tuple[str, str], str] = {}
    for name, model in models.items():
        runtime.check_arguments(model.onnx, threads)
        expected, limit = model.expected(batch), model.tolerance()
        for one in runtimes:
            if one.needs == "integers" and not model.has_integers:
                continue  # the same as with integer kernels
            try:
                calls[name, one.name], gaps[name, one.name] = _checked(one, model, threads, batch, expected, limit)
            except (ValueError, verify.ExportMismatchError) as error:
                left_out[name, one.name] = str(error)
        if not any(of == name for of, _ in calls):
            reasons = "; ".join(f"{on}: {why}" for (of, on), why in left_out.items() if of == name)
            raise ValueError(f"no runtime can run {name}: {reasons}")
    samples = latency.sample(calls, rounds=rounds)
    reference = _fastest([key for key in calls if key[0] == next(iter(models))], samples)
    titles = {one.name: one.title() for one in runtimes}
    found = {
        key: latency.summary(
            samples[key],
            samples[reference],
            latency.Bench(titles[key[1]], runtime.device_name(), threads, len(tree_leaves(batch)[0])),
        )
        for key in calls
    }
    return Race(found, gaps, left_out)


def _checked(
    one: Runtime, model: Deployable, threads: int, batch: Any, expected: Any, limit: float
) -> tuple[Callable[[], object], float]:
    """The call to time, and how far its outputs are off."""
    session = one.open(model, threads)
    gap = verify.distance(expected, session(batch))
    verify.check(gap, limit + one.slack)
    return partial(session, batch), gap["relative_error"]


def _fastest(keys: Sequence[tuple[str, str]], samples: Mapping[tuple[str, str], list[float]]) -> tuple[str, str]:
    """The one with the least median of ratios, round by round."""
    ratios = {key: latency.ratio(samples[key], samples[keys[0]]) for key in keys}
    return min(ratios, key=lambda key: ratios[key])
