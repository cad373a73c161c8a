"""`LowRank`: layers that become products of smaller ones."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar, final

from torch import nn

from lightning_compress.core import edits, forms, recurrent, reform, select
from lightning_compress.core.method import Compact, Edit, Method, Stage
from lightning_compress.cost.layers import Prices
from lightning_compress.cost.macs import macs as count_macs
from lightning_compress.cost.params import num_params
from lightning_compress.lowrank.rank import Spectrum, largest_share

_FORMS = ("svd", "tucker", "cp", "spatial")
_Ranks = int | Sequence[int]


@final
class LowRank(Method):
    """Gives layers a form of low rank with the values that come nearest, to be trained on.

    Linear layers and 1x1 convolutions become two layers (SVD); convolutions with a kernel take `form`: "tucker"
    (arXiv 1511.06530), "cp" (1412.6553), "spatial" (1405.3866) or "svd", or of a mapping such as {"layer3": "cp", "":
    "tucker"} what the first pattern found in the name says. One of these sets the ranks: `rank` (a number, or a mapping
    of patterns; a pair for "tucker"; at most the full rank is used), `share` of the full rank, `energy`, the share of
    the squared singular values to keep, or a budget: `macs` or `params` of the whole model as a share of what they
    are, met by one energy for all layers.

    Of a recurrent layer the weights that read its inputs become a product: a linear layer, and the same recurrent one
    on what that puts out (the first of two products of Prabhavalkar et al., arXiv 1603.08042; the other, of states,
    is nothing that ONNX's layers compute). A layer that would not have fewer weights and as few multiply-accumulates
    stays whole, and so does a recurrent cell; a log line names them. The layer's name then holds an `nn.Sequential`;
    other methods find `fc.0` and `fc.1`.

    Raises:
        ValueError: none or several settings for the ranks, one out of range, nothing saved, or a budget out of reach.

    >>> import torch
    >>> model = LowRank(rank=2).attach(nn.Sequential(nn.Linear(8, 6)), torch.zeros(1, 8))
    >>> [name for name, _ in model.named_parameters()]
    ['0.0.weight', '0.1.weight', '0.1.bias']
    """

    stage: ClassVar[Stage] = Stage.STRUCTURE

    def __init__(
        self,
        rank: _Ranks | Mapping[str, _Ranks] | None = None,
        *,
        share: float | None = None,
        energy: float | None = None,
        macs: float | None = None,
        params: float | None = None,
        form: str | Mapping[str, str] = "tucker",
        select: str = "",
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        given = {"rank": rank, "share": share, "energy": energy, "macs": macs, "params": params}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"LowRank needs one of rank, share, energy, macs, params; got {given or 'none'}")
        ((self.by, value),) = given.items()
        if self.by != "rank" and not (isinstance(value, int | float) and 0.0 < value <= 1.0):
            raise ValueError(f"LowRank: {self.by} is a share in (0, 1]; got {value!r}")
        self.amount: Any = value
        self.form = dict(form) if isinstance(form, Mapping) else {"": form}
        for name in self.form.values():
            if name not in _FORMS:
                raise ValueError(f"LowRank: form must be one of {', '.join(_FORMS)}; got {name!r}")
        self.select, self.exclude = select, tuple(exclude)
        self._edits: list[Edit] = []

    def get_extra_state(self) -> dict[str, Any]:
        """The ranks, which a resumed run must have found again."""
        return {"edits": self._edits}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See that they are those of the checkpoint."""
        reform.check_same(self._edits, state["edits"], owner="LowRank")

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Replace the selected layers."""
        layers = select.layers(
            model,
            owner="LowRank",
            select=self.select,
            exclude=self.exclude,
            kinds=(nn.Linear, nn.Conv2d, *recurrent.KINDS),
        )
        wanted = self._forms(layers)
        whole = reform.refusals(model, wanted)
        wanted = {name: form for name, form in wanted.items() if name not in whole}
        prices = Prices(model, example, wanted)
        found = self._ranks(model, example, wanted, prices)
        saving = {name: ranks for name, ranks in found.items() if prices.saves(name, wanted[name], ranks)}
        whole |= {name: f"rank {found[name]} saves nothing" for name in wanted if name not in saving}
        self._edits = [edits.factor(name, wanted[name], ranks) for name, ranks in saving.items()]
        return reform.reformed(model, self._edits, whole, owner="LowRank")

    def _forms(self, layers: Mapping[str, nn.Module]) -> dict[str, str]:
        """The form that each layer is to take."""
        kernels = [name for name, layer in layers.items() if prod(getattr(layer, "kernel_size", ())) > 1]
        chosen = select.by_pattern(self.form, kernels, owner="LowRank") if kernels else {}
        return {name: chosen.get(name, "svd") for name in layers}

    def _ranks(
        self, model: nn.Module, example: Any, wanted: Mapping[str, str], prices: Prices
    ) -> dict[str, tuple[int, ...]]:
        weights = {name: forms.weight_of(model.get_submodule(name)) for name in wanted}
        full = {name: forms.full_ranks(weights[name].shape, form) for name, form in wanted.items()}
        if self.by == "rank":
            given = self.amount if isinstance(self.amount, Mapping) else {"": self.amount}
            chosen = select.by_pattern(given, wanted, owner="LowRank")
            return {name: _at_most(chosen[name], most) for name, most in full.items()}
        if self.by == "share":
            return {name: tuple(max(1, round(self.amount * top)) for top in most) for name, most in full.items()}
        spectra = {name: Spectrum(weights[name], form) for name, form in wanted.items()}

        def ranks(energy: float) -> dict[str, tuple[int, ...]]:
            return {name: spectrum.ranks(energy) for name, spectrum in spectra.items()}

        if self.by == "energy":
            return ranks(self.amount)
        which = ("params", "macs").index(self.by)
        before = num_params(model) if self.by == "params" else sum(count_macs(model, example).values())

        def cost(energy: float) -> float:
            chosen = ((name, wanted[name], found) for name, found in ranks(energy).items())
            saved = (prices.whole[how[0]][which] - prices.of(*how)[which] for how in chosen if prices.saves(*how))
            return before - sum(saved)

        energy = largest_share(cost, self.amount * before)
        if energy is None:
            raise ValueError(
                f"LowRank: {self.by}={self.amount} of the model is out of reach: the smallest ranks leave "
                f"{cost(0.0) / before:.3f}; write more, or select more layers"
            )
        return ranks(energy)

    def finalize(self, compact: Compact, example: Any) -> Compact:
        """The layers are there already; say how they came about."""
        return compact.with_edits(self._edits)


def _at_most(rank: _Ranks, full: tuple[int, ...]) -> tuple[int, ...]:
    ranks = (rank,) * len(full) if isinstance(rank, int) else tuple(rank)
    if len(ranks) != len(full) or any(type(each) is not int or each < 1 for each in ranks):
        raise ValueError(f"LowRank: a rank is a whole number from 1 up, for 'tucker' perhaps a pair; got {rank!r}")
    return tuple(min(each, most) for each, most in zip(ranks, full, strict=True))
