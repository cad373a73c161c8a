"""Whether an exported model computes what the PyTorch model computes, on real inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_compress.core.fixed import FixedQuantizer


class ExportMismatchError(RuntimeError):
    """An exported model does not compute what the model it came from computes."""


@torch.no_grad()
def compare(model: nn.Module, session: Callable[[NDArray[Any]], Any], inputs: Tensor) -> dict[str, float]:
    """Distance between the outputs of `model` and of `session`, an exported copy, on the batch `inputs`.

    `max_error` and `mean_error` are absolute, `relative_error` is the mean error over the mean size of the outputs,
    `agreement` the share of rows whose largest output is the same one, of outputs [batch, classes, ...] at each place.
    Of several outputs by name these are the worst of each, and `max_error/<name>` and so on are its own.

    >>> net = nn.Linear(2, 2)
    >>> compare(net, lambda x: net(torch.from_numpy(x)).numpy(), torch.ones(3, 2))["agreement"]
    1.0
    """
    return distance(model(inputs), session(inputs.numpy()))


def distance(expected: Tensor | Mapping[str, Tensor], got: Any) -> dict[str, float]:
    """How far outputs, tensors or arrays, are off, as `compare` says it.

    Raises:
        ExportMismatchError: they have not the names or the shape of the expected ones.

    >>> distance(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 2.0]]))["relative_error"]
    0.25
    """
    if isinstance(expected, Mapping):
        return _by_name(expected, got)
    got = torch.as_tensor(got)
    if got.shape != expected.shape:
        raise ExportMismatchError(f"expected outputs of shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    error, classes = (got - expected).abs(), min(1, expected.dim() - 1)
    return {
        "max_error": float(error.max()),
        "mean_error": float(error.mean()),
        "relative_error": float(error.mean() / expected.abs().mean().clamp_min(torch.finfo().tiny)),
        "agreement": float((got.argmax(classes) == expected.argmax(classes)).float().mean()),
    }


def _by_name(expected: Mapping[str, Tensor], got: Any) -> dict[str, float]:
    if len(expected) == 1 and not isinstance(got, Mapping):
        got = dict.fromkeys(expected, got)  # a session does not say what its only output is called
    if not isinstance(got, Mapping) or got.keys() != expected.keys():
        names = ", ".join(got) if isinstance(got, Mapping) else "one without a name"
        raise ExportMismatchError(f"expected outputs called {', '.join(expected)}, got {names}")
    own = {name: distance(expected[name], got[name]) for name in expected}
    worst = {
        figure: float((np.min if figure == "agreement" else np.max)([each[figure] for each in own.values()]))
        for figure in next(iter(own.values()))  # numpy's, as NaN has to come through
    }
    return worst | {f"{figure}/{name}": value for name, each in own.items() for figure, value in each.items()}


def tolerance(model: nn.Module) -> float:
    """The largest `relative_error` that rounding explains: 1e-3 in float, some codes of the coarsest activation else.

    An int8 kernel adds in int32 and scales once, so a sum that lies at the border of two codes may round to the
    other one, and later layers pass that on; such differences scale with the size of a code, 1 / (2^bits - 1) of the
    range. They are rare, which is why the mean is looked at and not the maximum. Four codes are allowed for up to four
    roundings, and as the differences of more come together like the steps of a random walk, more with their root. A
    lost scale, zero point or clip moves the outputs by about their own size, far above 0.5, where this stops.

    >>> round(tolerance(FixedQuantizer(torch.tensor(1.0), torch.tensor(0), 0, 255)), 4)
    0.0157
    """
    return explained([module.bits for module in model.modules() if isinstance(module, FixedQuantizer)])


def explained(bits: Sequence[int]) -> float:
    """`tolerance`, of a model that rounds activations to so many bits, each time it does.

    >>> explained([])
    0.001
    """
    return min(0.5, 2 * max(4, len(bits)) ** 0.5 / (2 ** min(bits) - 1)) if bits else 1e-3


def check(distance: dict[str, float], limit: float) -> None:
    """Refuse an export whose `relative_error` in `distance`, from `compare`, is above `limit`, from `tolerance`.

    Raises:
        ExportMismatchError: the export is wrong, or the runtime computes it wrongly.

    >>> check({"relative_error": 0.001, "agreement": 1.0}, limit=0.01)
    """
    if not distance["relative_error"] <= limit:
        raise ExportMismatchError(
            f"the exported model is off by {distance['relative_error']:.3g} of its outputs' size (mean), of which "
            f"rounding explains {limit:.3g}; its largest output agrees on {distance['agreement']:.1%} of the inputs"
        )
