"""The edit that puts another network's classifier into a model, and in front of it a projector to what that one reads.

`{"kind": "reuse", "layer": "fc", "shape": [10, 64], "widths": [16, 64]}`: the linear layer `fc` becomes a row of two,
`fc.projector`, from 16 features to 64, and `fc.classifier` with a weight of `shape`.
`{..., "widths": [16, 32, 64], "after": "layer3", "relu": true, "size": [4, 4]}`: the projector is of convolutions and
takes what `layer3` puts out, as `layer3.projector`, averaged to `size` if there is one; `fc` stays a single layer.
"""

from collections import OrderedDict
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import nn

from lightning_compress.core import surgery
from lightning_compress.core.method import Edit

KIND, PROJECTOR, CLASSIFIER = "reuse", "projector", "classifier"


def entries(edit: Edit) -> int:
    """How many weights the convolutions and linear layers of a "reuse" edit have.

    Raises:
        ValueError: it says something else.

    >>> entries({"kind": "reuse", "layer": "fc", "shape": [10, 64], "widths": [16, 64]})
    1664
    """
    widths, shape, size = edit["widths"], edit["shape"], edit.get("size", [1, 1])
    whole = all(type(number) is int and number > 0 for number in (*widths, *shape, *size))
    if not whole or (len(widths), len(shape), len(size)) not in ((2, 2, 2), (3, 2, 2)):
        raise ValueError(f"a reused classifier of shape {shape} behind a projector of widths {widths}, {size}")
    kernel = 9 * widths[1] ** 2 if len(widths) == 3 else 0
    return int(sum(one * other for one, other in pairwise(widths)) + kernel + prod(shape))


def take(model: nn.Module, edit: Edit) -> nn.Module:
    """Replay a "reuse" edit, in place; what is new holds zeros.

    Raises:
        ValueError: the model has no such layers.

    >>> edit = {"kind": "reuse", "layer": "0", "shape": [3, 5], "widths": [2, 5]}
    >>> take(nn.Sequential(nn.Linear(2, 3)), edit)(torch.ones(1, 2)).tolist()
    [[0.0, 0.0, 0.0]]
    """
    entries(edit)
    layer: Any = model.get_submodule(edit["layer"])
    classes, inputs = edit["shape"]
    if not isinstance(layer, nn.Linear) or layer.out_features != classes:
        raise ValueError(f"cannot reuse a classifier of {classes} classes in the place of {edit['layer']!r}, {layer}")
    with torch.device("meta"):
        projector, classifier = _projector(edit), nn.Linear(inputs, classes)
    for made in (projector, classifier):
        made.to_empty(device=layer.weight.device).train(layer.training).requires_grad_(layer.weight.requires_grad)
        for tensor in made.state_dict().values():
            tensor.zero_()
    if "after" not in edit:
        both = OrderedDict([(PROJECTOR, projector), (CLASSIFIER, classifier)])
        return surgery.replace(model, edit["layer"], nn.Sequential(both))
    return surgery.replace(_append(model, edit["after"], projector), edit["layer"], classifier)


def _projector(edit: Edit) -> nn.Module:
    first, *within, last = edit["widths"]
    if not within:
        return nn.Linear(first, last)
    (inner,) = within
    return nn.Sequential(
        *([nn.AdaptiveAvgPool2d(tuple(edit["size"]))] if "size" in edit else []),
        *(nn.Conv2d(first, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
        *(nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
        *(nn.Conv2d(inner, last, 1, bias=False), nn.BatchNorm2d(last)),
        *([nn.ReLU()] if edit["relu"] else []),
    )


def _append(model: nn.Module, name: str, projector: nn.Module) -> nn.Module:
    """The projector behind the module called `name`, so that no weight of the model gets another name."""
    module = model.get_submodule(name)
    if type(module) is nn.Sequential:
        module.add_module(PROJECTOR, projector)
        return model
    if module.state_dict():
        raise ValueError(
            f"cannot put a projector behind {name!r}, a {type(module).__name__}: expected an nn.Sequential or a module "
            "without weights, such as an activation"
        )
    return surgery.replace(model, name, nn.Sequential(OrderedDict([("before", module), (PROJECTOR, projector)])))
