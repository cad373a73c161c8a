"""Giving layers other forms (forms.py) with the values that come nearest, once it is known which."""

import logging
from collections import Counter
from collections.abc import Mapping

from torch import nn

from lightning_compress.core import decompose, edits, forms
from lightning_compress.core.method import Edit


def refusals(model: nn.Module, wanted: Mapping[str, str]) -> dict[str, str]:
    """Why some layers cannot take the form that is `wanted` of them, by name.

    >>> refusals(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 2, 3)), {"0": "cp", "1": "cp"})
    {'0': "a linear layer has no 'cp' form"}
    """
    holders = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    found = {}
    for name, form in wanted.items():
        layer = model.get_submodule(name)
        why = forms.refusal(layer, form)
        weights = [parameter for own, parameter in layer.named_parameters() if own.startswith("weight")]
        if why is None and any(holders[id(weight)] > 1 for weight in weights):
            why = "another layer has the same weight"
        if why is not None:
            found[name] = why
    return found


def reformed(model: nn.Module, made: list[Edit], whole: Mapping[str, str], *, owner: str) -> nn.Module:
    """The model, in place, after the "factor" edits `made`; a log line names the layers that stay `whole`, and why.

    Raises:
        ValueError: there is no edit.
    """
    left = ", ".join(f"{name} ({why})" for name, why in whole.items())
    if not made:
        raise ValueError(f"{owner} would change nothing, all layers stay as they are: {left}")
    if whole:
        logging.getLogger(__name__).warning("%s leaves as they are: %s", owner, left)
    for edit in made:
        layer = model.get_submodule(edit["layer"])
        model = edits.replay(model, [edit])
        new = model.get_submodule(edit["layer"])
        assert isinstance(new, nn.Sequential)
        decompose.fill(new, layer, edit["form"], edit["ranks"])
    return model


def check_same(found: list[Edit], saved: list[Edit], *, owner: str) -> None:
    """See that a run that is resumed has given layers the forms that the checkpoint has.

    Raises:
        ValueError: it has not; the message names the first difference.

    >>> check_same([], [], owner="Example")
    """
    if found == saved:
        return
    pairs = [{edit["layer"]: (edit["form"], edit["ranks"]) for edit in each} for each in (found, saved)]
    name = next(name for name in {**pairs[0], **pairs[1]} if pairs[0].get(name) != pairs[1].get(name))
    raise ValueError(
        f"{owner}: {name!r} is {pairs[1].get(name, 'as it was')} in the checkpoint, here it would be "
        f"{pairs[0].get(name, 'as it was')}: start from the same weights with the same settings"
    )
