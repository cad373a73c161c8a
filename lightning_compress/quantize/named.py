"""The quantizers by the names that a configuration gives them."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lightning_compress.core import lookup
from lightning_compress.quantize import learned, levels, lowbit, uniform
from lightning_compress.quantize.base import InputQuantizer, WeightQuantizer

Options = Mapping[str, Any] | None
Make = Callable[[int], Any]

WEIGHTS: dict[str, Callable[..., WeightQuantizer]] = {
    "uniform": uniform.Uniform,
    "seed_affine": uniform.SeedAffine,
    "lsq": learned.LSQ,
    "lsq_plus": partial(learned.LSQ, init="three_sigma"),
    "dorefa": lowbit.DoReFa,
    "ternary": lowbit.Ternary,
    "ttq": lowbit.TTQ,
    "binary": lowbit.Binary,
    "apot": levels.PowersOfTwo,
    "powers_of_two": partial(levels.PowersOfTwo, additive=False),
}
ACTIVATIONS: dict[str, Callable[..., InputQuantizer]] = {
    "observed": uniform.Observed,
    "lsq": learned.LSQInput,
    "lsq_plus": partial(learned.LSQInput, offset=True),
    "pact": learned.PACT,
    "dorefa": partial(learned.PACT, bound=1.0, trained=False),
}


def maker(what: str, name: Any, base: type[WeightQuantizer] | type[InputQuantizer], options: Options) -> Make:
    """A function from bits to the quantizer called `name`, a subclass of `base`, with the options as arguments.

    Raises:
        ValueError: no such quantizer, or an option that it does not have; the message names the nearest.

    >>> maker("weights", "uniform", WeightQuantizer, {"symmetric": False})(4).bits
    4
    """
    known: Mapping[str, Callable[..., Any]] = WEIGHTS if base is WeightQuantizer else ACTIVATIONS
    found, options = lookup.among(name, known, owner=f"Quantize: {what}"), options or {}
    kind = found.func if isinstance(found, partial) else found
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ValueError(f"Quantize: {what}={name!r} is no {base.__name__} (quantize/base.py)")
    taken = list(inspect.signature(found).parameters)[1:]
    for key in options:
        if key not in taken:
            near = difflib.get_close_matches(key, taken, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(taken) or 'none'}"
            raise ValueError(f"Quantize: {what}={name!r} has no option {key!r}: {hint}")
    return partial(found, **options)


def able(make: Make, bits: int | None, other: Make) -> Make:
    """`make`, or `other` where that cannot take so many bits; None asks for nothing.

    >>> able(lowbit.Ternary, 8, uniform.Uniform).__name__
    'Uniform'
    """
    if bits is not None:
        try:
            make(bits)
        except ValueError:
            return other
    return make
