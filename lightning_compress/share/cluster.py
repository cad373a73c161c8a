"""k-means as pure functions: of single weights, sorted once, and of blocks of neighbouring weights."""

import difflib
from collections.abc import Callable

import torch
from torch import Tensor

#: Distances of blocks to centroids that are held at a time.
_CHUNK = 2**22

Init = Callable[[Tensor, int, torch.Generator], Tensor]


def linear(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centroids evenly spread from the least to the greatest of `points` [n] (Deep Compression, arXiv 1510.00149).

    It keeps levels for the few large weights, which matter most.

    >>> linear(torch.tensor([0.0, 0.1, 4.0]), 3, torch.Generator())
    tensor([0., 2., 4.])
    """
    share = torch.linspace(0.0, 1.0, clusters, dtype=points.dtype, device=points.device)
    return points.min() * (1.0 - share) + points.max() * share


def density(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centroids that each have the same number of `points` [n] around them (arXiv 1510.00149).

    >>> density(torch.arange(6.0), 2, torch.Generator())
    tensor([1., 4.])
    """
    middle = (torch.arange(clusters, device=points.device) + 0.5) / clusters * len(points)
    return points.sort().values[middle.long()]


def random(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centroids that are `clusters` of the `points` [n] or [n, length], drawn without putting back (Forgy)."""
    drawn = torch.randperm(len(points), generator=generator)[:clusters]
    return points[drawn.to(points.device)]


def spread(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Centroids drawn from `points` one after another, in proportion to the squared distance to the nearest so far.

    `points` are [n] or [n, length]. This is k-means++ (Arthur and Vassilvitskii, SODA 2007).
    """
    rows = points.reshape(len(points), -1)
    nearest = torch.full((len(rows),), torch.inf, dtype=rows.dtype, device=rows.device)
    chosen = int(torch.rand((), generator=generator) * len(rows))
    found = []
    for _ in range(clusters):
        found.append(chosen)
        nearest = torch.minimum(nearest, (rows - rows[chosen]).square().sum(1))
        mass = nearest.double().cumsum(0)
        at = torch.rand((), generator=generator, dtype=torch.float64) * mass[-1].cpu()
        chosen = min(int(torch.searchsorted(mass, at.to(mass.device), right=True)), len(rows) - 1)
    return points[torch.tensor(found, device=points.device)]


INITS: dict[str, Init] = {"linear": linear, "density": density, "random": random, "kmeans++": spread}


def init(name: str, points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """First centroids, [clusters] or [clusters, length], for `points` [n] or [n, length] by one of `INITS`.

    Points fewer than clusters are repeated.

    >>> init("kmeans++", torch.tensor([3.0, 3.0, 1.0]), 2, torch.Generator().manual_seed(0)).sort().values
    tensor([1., 3.])
    """
    check_init(name)
    missing = clusters - len(points)
    if missing > 0:
        points = torch.cat([points, points[-1:].expand(missing, *points.shape[1:])])
    return INITS[name](points, clusters, generator)


def check_init(name: str) -> None:
    """See that there is an init called `name`.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if name not in INITS:
        near = difflib.get_close_matches(str(name), INITS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Share: init must be one of {', '.join(INITS)}; got {name!r}{hint}")


def assign(points: Tensor, centroids: Tensor) -> Tensor:
    """Index (int64, [n]) of the nearest of `centroids` [k] or [k, length] to each of `points` [n] or [n, length].

    >>> assign(torch.tensor([0.9, -3.0, 0.1]), torch.tensor([1.0, 0.0]))
    tensor([0, 1, 1])
    """
    if points.dim() == 1:
        ordered, order = centroids.sort()
        return order[torch.bucketize(points, (ordered[1:] + ordered[:-1]) / 2, right=True)]
    lengths = centroids.square().sum(1)
    step = max(1, _CHUNK // len(centroids))
    return torch.cat([(lengths - 2 * part @ centroids.T).argmin(1) for part in torch.split(points, step)])


def kmeans(points: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Lloyd's algorithm from the given `centroids` until nothing moves, for at most so many `iterations`.

    `points` are [n] or [n, length], `centroids` [k] or [k, length]; the result is as `centroids`, in rising order where
    1-D. A centroid without points goes to the point that is farthest from its own.

    >>> kmeans(torch.tensor([0.0, 1.0, 8.0, 9.0]), torch.tensor([0.0, 1.0]), 10)
    tensor([0.5000, 8.5000])
    """
    return _line(points, centroids, iterations) if points.dim() == 1 else _blocks(points, centroids, iterations)


def _line(points: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """1-D k-means: clusters are stretches of the sorted points, so sums come from one running sum.

    In double precision on the CPU: the same on every device, and a running sum of millions stays exact enough.
    """
    line = points.double().cpu().sort().values
    values = torch.unique_consecutive(line)
    if len(values) <= len(centroids):
        exact = torch.cat([values, values[-1:].expand(len(centroids) - len(values))])
        return exact.to(centroids)
    sums = torch.cat([line.new_zeros(1), line.cumsum(0)])
    found = centroids.double().cpu().sort().values
    for _ in range(iterations):
        edges = torch.searchsorted(line, (found[1:] + found[:-1]) / 2)
        bounds = torch.cat([edges.new_zeros(1), edges, edges.new_full((1,), len(line))])
        counts = bounds.diff()
        means = sums[bounds].diff() / counts.clamp_min(1)
        empty = counts == 0
        if empty.any():
            errors = (line - means.repeat_interleave(counts)).abs()
            means[empty] = line[errors.topk(int(empty.sum())).indices]
        means = means.sort().values
        if torch.equal(means, found):
            break
        found = means
    return found.to(centroids)


def _blocks(points: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    found = centroids
    for _ in range(iterations):
        codes = assign(points, found)
        counts = torch.bincount(codes, minlength=len(found))
        means = torch.zeros_like(found).index_add_(0, codes, points) / counts.clamp_min(1)[:, None]
        empty = counts == 0
        if empty.any():
            errors = (points - means[codes]).square().sum(1)
            means[empty] = points[errors.topk(min(int(empty.sum()), len(points))).indices]
        if torch.equal(means, found):
            break
        found = means
    return found
