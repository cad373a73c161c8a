"""AdaRound: learning to round up or down, layer by layer (Nagel et al. 2020, arXiv 2004.10568)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_compress.core import select, surgery
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.weight import Weight
from lightning_compress.quantize import affine
from lightning_compress.quantize.base import spread
from lightning_compress.quantize.correction import in_order, inputs_of
from lightning_compress.quantize.uniform import Uniform

#: How far the rectified sigmoid reaches beyond 0 and 1, so that it comes to lie on them (equation 23).
_ZETA, _GAMMA = 1.1, -0.1
#: Weight of the regulariser, its first and last beta, and the share of the steps before it acts.
_LAMBDA, _BETA, _ALONE = 0.01, (20.0, 2.0), 0.2
_LR = 1e-2
#: Samples in a step, as in the paper.
_ROWS = 32
#: A weight so near to a code, in steps, stays there: zeros of masks, and the largest, which the scale follows.
_AT_CODE = 1e-4
#: A v so low that its share is zero, and so are its part of the regulariser and its gradient.
_SETTLED = -9.0


def rectified(v: Tensor) -> Tensor:
    """h(v), the share of a step that is added to the code below: sigmoid, stretched and clipped (equation 23).

    >>> rectified(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.clamp(torch.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA, 0.0, 1.0)


def unrectified(h: Tensor) -> Tensor:
    """The v of a share `h` in [0, 1).

    >>> rectified(unrectified(torch.tensor([0.25])))
    tensor([0.2500])
    """
    return -torch.log((_ZETA - _GAMMA) / (h - _GAMMA) - 1.0)


def undecided(h: Tensor, beta: float) -> Tensor:
    """The regulariser, summed: 1 - |2 h - 1|^beta is 0 where h is 0 or 1 (equation 24).

    >>> undecided(torch.tensor([0.0, 0.5, 0.75, 1.0]), 2.0)
    tensor(1.7500)
    """
    return (1.0 - (2.0 * h - 1.0).abs().pow(beta)).sum()


def beta_at(step: int, steps: int) -> float | None:
    """The regulariser's exponent, which falls evenly; None while the error acts alone.

    >>> beta_at(0, 10), beta_at(2, 10), beta_at(6, 10)
    (None, 20.0, 11.0)
    """
    begin = _ALONE * steps
    if step < begin:
        return None
    first, last = _BETA
    return first + (last - first) * (step - begin) / (steps - begin)


def error_of(layer: nn.Module, weight: Tensor, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """Mean square of what a plain layer with `weight` makes of `inputs`, less `targets`.

    >>> error_of(nn.Linear(1, 1, bias=False), torch.full((1, 1), 2.0), [torch.ones(3, 1)], [torch.zeros(3, 1)])
    4.0
    """
    with torch.no_grad():
        errors = [
            (functional_call(layer, {"weight": weight}, (x,)) - y).square().double().mean() * len(x)
            for x, y in zip(inputs, targets, strict=True)
        ]
    return float(torch.stack(errors).sum()) / sum(len(x) for x in inputs)


def learn(
    layer: nn.Module, quantizer: Uniform, inputs: Sequence[Tensor], targets: Sequence[Tensor], steps: int
) -> Tensor:
    """The weight of a plain layer, each number at the code below or above it, learnt so that outputs are `targets`.

    Where that comes out worse than the nearest codes, these are what is returned.
    """
    weight: Any = layer.weight
    weight = weight.detach()
    with torch.no_grad():
        scale, _ = quantizer.qparams(weight)
        scale = spread(scale, weight, quantizer.axis, quantizer.group_size)
        nearest = affine.codes(weight, scale, torch.zeros_like(scale), quantizer.low, quantizer.high)
        below = (weight / scale).floor()
        free = (weight / scale - nearest).abs() > _AT_CODE
        v = unrectified(weight / scale - below).masked_fill_(~free, _SETTLED)

    def rounded(up: Tensor) -> Tensor:
        codes = torch.where(free, (below + up).clamp(quantizer.low, quantizer.high), nearest)
        return codes * scale

    with torch.enable_grad():
        v.requires_grad_(True)
        optimizer = torch.optim.Adam([v], lr=_LR)
        for step in range(steps):
            up = rectified(v)
            x, y = inputs[step % len(inputs)], targets[step % len(inputs)]
            error = (functional_call(layer, {"weight": rounded(up)}, (x,)) - y).square()
            loss = error.sum() * len(weight) / error.numel()  # summed over channels, mean over the rest
            beta = beta_at(step, steps)
            if beta is not None:
                loss = loss + _LAMBDA * undecided(up, beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    learnt = rounded((v.detach() >= 0.0).to(weight.dtype))
    choices = [learnt, nearest * scale]
    best = min(choices, key=lambda choice: error_of(layer, choice, inputs, targets))
    return torch.where(free, best, weight)


def check(name: str, weight: Weight, quantizer: nn.Module) -> None:
    """See that AdaRound can work on a weight.

    Raises:
        ValueError: its codes are not those of symmetric uniform quantization, it is a codebook's, or one that more than
            a convolution or linear layer has.

    >>> check("fc", Weight.of(nn.Linear(2, 2)), Uniform(4))
    """
    if len(weight.places) > 1 or not isinstance(weight.places[0].module, WEIGHTED):
        raise ValueError(
            f"Quantize: adaround fits the outputs of convolutions and linear layers with weights of their own, and "
            f"{name} is another; write exclude={[select.exactly(name)]}, or adaround=0"
        )
    if not (isinstance(quantizer, Uniform) and quantizer.symmetric) or weight.has_codebook:
        raise ValueError(
            f"Quantize: adaround chooses among evenly spaced symmetric codes for weights of their own, and {name} has "
            f"others; use weights=uniform without weight sharing, or adaround=0"
        )


@torch.no_grad()
def adaround(
    model: nn.Module, reference: nn.Module, quantizers: Mapping[str, Any], inputs: Sequence[Any], steps: int
) -> None:
    """Round the weights of each quantized layer, in the order in which they run, `steps` steps of Adam for each.

    `reference` is the network before quantization; a layer's inputs are those of the network that is quantized so far,
    its targets what the layer makes of the inputs in `reference` (asymmetric reconstruction, equation 25 without the
    activation). The trained tensors are left at codes, where their quantizers find them again.
    """
    for name in in_order(model, quantizers, inputs[0]):
        layer: Any = model.get_submodule(name)
        plain: Any = reference.get_submodule(name)
        twin: Any = surgery.plain(layer)
        quantizer = quantizers[name]
        twin.weight.copy_(surgery.below(layer, "weight", quantizer))
        targets = [plain(x) for x in _chunks(inputs_of(reference, name, inputs))]
        found = learn(twin, quantizer, _chunks(inputs_of(model, name, inputs)), targets, steps)
        layer.parametrizations.weight.original.copy_(found)


def _chunks(inputs: Iterable[Tensor]) -> list[Tensor]:
    return [chunk for x in inputs for chunk in torch.split(x, _ROWS)]
