"""`Share`: weights that share a few learned values (Deep Compression)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch import distributed as dist

from lightning_compress.core import select
from lightning_compress.core.mask import Mask
from lightning_compress.core.method import Method, Stage
from lightning_compress.core.weight import Weight
from lightning_compress.share import cluster
from lightning_compress.share.codebook import Codebook

_SCOPES = ("layer", "global")
_MOST_LEVELS = 2**16
# Exact zeros beyond this share come from pruning, not from chance.
_CHANCE = 1e-3


@final
@dataclass(frozen=True)
class _Tensor:
    """A shared tensor: its name, itself, its codebook."""

    name: str
    weight: Weight
    book: Codebook

    def blocks(self) -> Tensor:
        """The weight under its masks as points to cluster, [n] or [n, length]."""
        return self.weight.below(self.book).reshape(-1, *self.book.centroids.shape[1:])


@final
class Share(Method):
    """Clusters weights by k-means and trains the centroids in their place (Han et al. 2016, arXiv 1510.00149).

    A layer has 2^`bits` centroids, or `clusters` of them; a mapping such as {"conv": 8, "fc": 5} gives the layers whose
    name its first matching pattern is found in so many. From progress `start` on, each weight that no mask leaves out
    stands for the nearest centroid, and a centroid's gradient is the sum over its weights. `init` ("linear", "density",
    "random", "kmeans++") starts k-means, which runs for at most `iterations`. `scope="global"` lets all layers share
    one codebook. With `length` above 1, blocks of so many neighbours along the flattened rows share (product
    quantization, arXiv 1412.6115). `lr` is the centroids' learning rate, if not the optimizer's: with SGD, summed
    gradients ask for a smaller one.

    Raises:
        ValueError: a setting out of range, no layer matched, more centroids than a layer can use, or `length` above 1
            on a pruned layer.

    >>> model = Share(bits=1).attach(nn.Linear(4, 2), None)
    >>> sorted(name for name, _ in model.named_parameters())[-2:]
    ['parametrizations.weight.0.centroids', 'parametrizations.weight.original']
    """

    stage: ClassVar[Stage] = Stage.SHARING

    def __init__(
        self,
        bits: int | Mapping[str, int] | None = None,
        *,
        clusters: int | Mapping[str, int] | None = None,
        init: str = "linear",
        scope: str = "layer",
        length: int = 1,
        start: float = 0.0,
        iterations: int = 300,
        lr: float | None = None,
        seed: int = 0,
        select: str = "",
        exclude: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if (bits is None) == (clusters is None):
            raise ValueError(f"Share needs bits or clusters, one of them; got {bits=}, {clusters=}")
        if scope not in _SCOPES:
            raise ValueError(f"Share: scope must be one of {', '.join(_SCOPES)}; got {scope!r}")
        if length < 1 or iterations < 1 or not 0.0 <= start < 1.0:
            raise ValueError(
                "Share: length and iterations count from 1 up, start lies in [0, 1); "
                f"got {length=}, {iterations=}, {start=}"
            )
        cluster.check_init(init)
        if length > 1 and init in ("linear", "density"):
            raise ValueError(f"Share: init={init!r} orders single weights; with {length=} write 'kmeans++' or 'random'")
        self.clusters = _levels(bits, clusters)
        if scope == "global" and len(self.clusters) > 1:
            raise ValueError(f"Share: one codebook for all layers has one size; got {dict(self.clusters)} clusters")
        self.init, self.scope, self.length = init, scope, length
        self.start, self.iterations, self.lr, self.seed = start, iterations, lr, seed
        self.select, self.exclude = select, tuple(exclude)
        self._tensors: list[_Tensor] = []
        self._renewed = False

    def get_extra_state(self) -> dict[str, Any]:
        """Whether weights are shared by now."""
        return {"active": self._active}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take it from the checkpoint."""
        for tensor in self._tensors:
            tensor.book.active = state["active"]

    @property
    def _active(self) -> bool:
        return any(tensor.book.active for tensor in self._tensors)

    def attach(self, model: nn.Module, example: Any) -> nn.Module:
        """Put codebooks on the selected weights, and their masks on top once more."""
        weights = select.weights(model, owner="Share", select=self.select, exclude=self.exclude)
        for pattern in self.clusters:
            if not any(re.search(pattern, name) for name in weights):
                raise ValueError(f"Share: pattern {pattern!r} is in none of the layers' names: {', '.join(weights)}")
        sizes = {name: self._size(name) for name in weights}
        everywhere: nn.Parameter | None = None
        for name, weight in weights.items():
            self._check_room(name, weight.latent, sizes[name])
            centroids = everywhere if everywhere is not None else self._centroids(weight.latent, sizes[name])
            everywhere = centroids if self.scope == "global" else None
            book = Codebook(tuple(weight.latent.shape), centroids)
            self._put(name, weight, book)
            self._tensors.append(_Tensor(name, weight, book))
        return model

    def _size(self, name: str) -> int:
        for pattern, clusters in self.clusters.items():
            if re.search(pattern, name):
                return clusters
        raise ValueError(
            f"Share: none of the patterns {', '.join(self.clusters)} is in {name!r}; add one, or exclude the layer"
        )

    def _centroids(self, weight: Tensor, clusters: int) -> nn.Parameter:
        shape = (clusters,) if self.length == 1 else (clusters, self.length)
        return nn.Parameter(torch.zeros(shape, device=weight.device))

    def _check_room(self, name: str, weight: Tensor, clusters: int) -> None:
        columns = weight[0].numel()
        if columns % self.length:
            raise ValueError(
                f"Share: rows of {name!r} have {columns} weights, not a multiple of length={self.length}; "
                "write another length, or exclude the layer"
            )
        if self.scope == "layer" and weight.numel() // self.length <= clusters:
            raise ValueError(
                f"Share: {clusters} clusters save nothing on {name!r}, which has {weight.numel() // self.length} "
                "weights or blocks; write fewer, or exclude the layer"
            )

    def _put(self, name: str, weight: Weight, book: Codebook) -> None:
        if weight.has_codebook:
            raise ValueError(f"Share: the weight of {name!r} has a codebook already; let each select layers of its own")
        masks, value = weight.masks, weight.value.detach()
        pruned = value.count_nonzero() < (1.0 - _CHANCE) * value.numel()
        if self.length > 1 and (masks or pruned):
            raise ValueError(
                f"Share: length={self.length} fills the zeros that pruning left in {name!r}; "
                "write length=1, or exclude the layer from one of the two"
            )
        if pruned:
            masks = [*masks, Mask.of(value)]
        for step in (book, *masks):
            weight.put(step)

    def prepare(self, model: nn.Module, batches: Iterable[Any]) -> None:
        """Share from the first step on, if `start` is 0; the data are not looked at."""
        if self.start == 0.0:
            self._cluster()

    def param_groups(self) -> list[dict[str, Any]]:
        """The centroids, free of weight decay, which would count for one weight where the gradient counts all."""
        group = {"params": list(self._groups()), "weight_decay": 0.0}
        return [group if self.lr is None else {**group, "lr": self.lr}]

    def _groups(self) -> dict[nn.Parameter, list[_Tensor]]:
        """Tensors by the centroids that they share."""
        found: dict[nn.Parameter, list[_Tensor]] = {}
        for tensor in self._tensors:
            found.setdefault(tensor.book.centroids, []).append(tensor)
        return found

    def update(self, model: nn.Module, progress: float) -> dict[str, float]:
        """Share the weights when it is time."""
        self._renewed = not self._active and progress >= self.start
        return {"share/distortion": self._cluster()} if self._renewed else {}

    def renewed(self) -> list[nn.Parameter]:
        """The centroids, once they are found: DDP made the optimizer count steps on them that had no gradient."""
        return list(self._groups()) if self._renewed else []

    @torch.no_grad()
    def _cluster(self) -> float:
        """Find centroids and codes for the weights as they are; what that takes off, as a share of their squares.

        The same on every rank, though k-means on a GPU may differ in its last bits: rank 0's is taken.
        """
        generator = torch.Generator().manual_seed(self.seed)
        lost = total = 0.0
        for centroids, tensors in self._groups().items():
            blocks = [tensor.blocks() for tensor in tensors]
            points = torch.cat([block[_kept(block)] for block in blocks])
            if len(points):
                first = cluster.init(self.init, points, len(centroids), generator)
                centroids.copy_(cluster.kmeans(points, first, self.iterations))
            for tensor in tensors:
                tensor.book.share(tensor.blocks())
            lost += float((points - centroids[cluster.assign(points, centroids)]).square().sum())
            total += float(points.square().sum())
        if dist.is_available() and dist.is_initialized():
            for tensor in self._tensors:
                dist.broadcast(tensor.book.centroids.detach(), src=0)
                dist.broadcast(tensor.book.codes, src=0)
        return lost / total if total else 0.0

    def settled(self, progress: float) -> bool:
        """Whether sharing has begun."""
        return progress >= self.start

    def missing_effect(self, model: nn.Module, progress: float) -> str | None:
        """Codebooks that are off, or that give one value to all weights."""
        for tensor in self._tensors:
            name = tensor.name
            if not tensor.book.active:
                return f"the codebook of {name} is off though progress is past start={self.start}"
            if bool((tensor.book.codes == tensor.book.codes[0, 0]).all()):
                return f"all weights of {name} share one value: were they masked or never initialised?"
        return None


def _levels(bits: int | Mapping[str, int] | None, clusters: int | Mapping[str, int] | None) -> dict[str, int]:
    """Clusters by pattern of layer names."""
    given: Any = clusters if bits is None else bits
    given = dict(given) if isinstance(given, Mapping) else {"": given}
    found = {pattern: 2**number if bits is not None else number for pattern, number in given.items()}
    for number in found.values():
        if not 2 <= number <= _MOST_LEVELS:
            raise ValueError(f"Share: bits are 1 to 16, clusters 2 to {_MOST_LEVELS}; got {bits=}, {clusters=}")
    return found


def _kept(blocks: Tensor) -> Tensor:
    """Which points to cluster: single weights that are not zero, blocks all of them."""
    return blocks != 0 if blocks.dim() == 1 else torch.ones(len(blocks), dtype=torch.bool, device=blocks.device)
