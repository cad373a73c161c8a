import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2, vq
from sklearn.cluster import KMeans
from torch import Tensor

from lightning_compress.share import cluster


def pruned(number: int = 4000) -> Tensor:
    """Weights as magnitude pruning leaves them: two lobes with a gap around zero."""
    weights = 0.1 * torch.randn(number)
    return weights[weights.abs() > 0.08]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def loss(points: Tensor, centroids: Tensor) -> float:
    return float((points - centroids[cluster.assign(points, centroids)]).square().sum())


def sklearn(points: Tensor, centroids: Tensor, iterations: int) -> Any:
    rows = points.reshape(len(points), -1).double().numpy()
    start = centroids.reshape(len(centroids), -1).double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer iterations than it wants
        return KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd").fit(rows)


@pytest.mark.parametrize("name", ["density", "random", "kmeans++"])
@pytest.mark.parametrize("clusters", [2, 7, 32])
def test_one_dimension_ends_where_sklearn_ends(name: str, clusters: int) -> None:
    points = pruned()
    first = cluster.init(name, points, clusters, generator())
    found = cluster.kmeans(points, first, 1000)
    expected = sklearn(points, first, 1000)
    np.testing.assert_allclose(found.numpy(), np.sort(expected.cluster_centers_[:, 0]), atol=1e-6)
    assert loss(points, found) == pytest.approx(expected.inertia_, rel=1e-5)


@pytest.mark.parametrize("iterations", [1, 2, 5, 20])
def test_one_dimension_goes_there_step_by_step_as_scipy_does(iterations: int) -> None:
    points = pruned()
    first = cluster.init("density", points, 16, generator())
    expected, _ = kmeans2(points.double().numpy(), first.double().numpy(), iter=iterations, minit="matrix")
    np.testing.assert_allclose(cluster.kmeans(points, first, iterations).numpy(), np.sort(expected), atol=1e-6)


@pytest.mark.parametrize("name", ["random", "kmeans++"])
def test_blocks_end_where_sklearn_ends(name: str) -> None:
    points = torch.randn(1500, 4) * torch.tensor([1.0, 0.1, 3.0, 0.5])
    first = cluster.init(name, points, 12, generator())
    expected = sklearn(points, first, 300)
    found = cluster.kmeans(points, first, 300)
    np.testing.assert_allclose(found.numpy(), expected.cluster_centers_, atol=1e-4)
    assert cluster.assign(points, found).tolist() == expected.labels_.tolist()


def test_blocks_of_one_are_single_weights() -> None:
    points = pruned()
    first = cluster.init("density", points, 8, generator())
    line, blocks = cluster.kmeans(points, first, 500), cluster.kmeans(points[:, None], first[:, None], 500)
    torch.testing.assert_close(line, blocks[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(500,), (500, 3)])
def test_each_point_gets_its_nearest_centroid(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_CHUNK", 700)  # several chunks, the last not full
    points, centroids = torch.randn(shape), torch.randn(9, *shape[1:])
    expected, _ = vq(points.reshape(500, -1).double().numpy(), centroids.reshape(9, -1).double().numpy())
    assert cluster.assign(points, centroids).tolist() == expected.tolist()


def test_every_centroid_has_points_where_linear_centroids_fall_into_the_gap() -> None:
    points = torch.cat([pruned(), torch.tensor([-9.0, 9.0])])
    first = cluster.init("linear", points, 16, generator())
    assert len(torch.unique(cluster.assign(points, first))) < 12
    found = cluster.kmeans(points, first, 500)
    assert len(torch.unique(cluster.assign(points, found))) == 16
    assert loss(points, found) < 0.05 * loss(points, first)


def test_every_centroid_of_blocks_has_points() -> None:
    points = torch.randn(300, 2)
    first = torch.cat([points[:5], torch.full((3, 2), 1e3)])
    assert len(torch.unique(cluster.assign(points, cluster.kmeans(points, first, 100)))) == 8


@pytest.mark.parametrize("name", list(cluster.INITS))
def test_as_many_values_as_clusters_are_kept_exactly(name: str) -> None:
    values = torch.tensor([-0.7, 0.1, 0.25, 3.0])
    points = values[torch.arange(200) % 4]
    for clusters in (4, 6):
        found = cluster.kmeans(points, cluster.init(name, points, clusters, generator()), 50)
        assert len(found) == clusters
        assert torch.equal(found[cluster.assign(points, found)], points)


@pytest.mark.parametrize("name", list(cluster.INITS))
def test_fewer_points_than_clusters(name: str) -> None:
    points = torch.tensor([2.0, -1.0])
    found = cluster.kmeans(points, cluster.init(name, points, 5, generator()), 10)
    assert found.shape == (5,)
    assert torch.equal(found[cluster.assign(points, found)], points)


def test_linear_is_even_and_reaches_both_ends() -> None:
    points = pruned()
    expected = np.linspace(float(points.min()), float(points.max()), 9)
    np.testing.assert_allclose(cluster.init("linear", points, 9, generator()).numpy(), expected, atol=1e-6)


def test_density_is_the_quantiles() -> None:
    points = pruned(20_000)
    expected = np.quantile(points.numpy(), (np.arange(8) + 0.5) / 8)
    np.testing.assert_allclose(cluster.init("density", points, 8, generator()).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("name", ["random", "kmeans++"])
def test_drawn_centroids_are_different_points_and_the_same_for_a_seed(name: str) -> None:
    points = torch.randn(400, 3)
    first = cluster.init(name, points, 40, generator())
    assert len(torch.unique(first, dim=0)) == 40
    assert all(bool((points == row).all(1).any()) for row in first)
    assert torch.equal(first, cluster.init(name, points, 40, generator()))
    assert not torch.equal(first, cluster.init(name, points, 40, torch.Generator().manual_seed(4)))


def test_kmeans_plus_plus_draws_in_proportion_to_squared_distance() -> None:
    # From 0, the others are at squared distances of 1 and 9.
    points = torch.tensor([0.0, 1.0, 3.0])
    drawn = torch.Generator().manual_seed(0)
    pairs = [tuple(cluster.init("kmeans++", points, 2, drawn).tolist()) for _ in range(3000)]
    from_zero = [second for first, second in pairs if first == 0.0]
    assert len(from_zero) == pytest.approx(1000, abs=100)
    assert sum(second == 3.0 for second in from_zero) / len(from_zero) == pytest.approx(0.9, abs=0.04)


def test_an_unknown_init_is_named() -> None:
    with pytest.raises(ValueError, match=r"init must be one of linear, density, random, kmeans.*did you mean 'linear'"):
        cluster.init("liner", torch.zeros(3), 2, generator())
