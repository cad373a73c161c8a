import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_compress.core.stored import Stored
from lightning_compress.share.codebook import Codebook


def book(shape: tuple[int, ...], clusters: int, length: int = 1) -> Codebook:
    made = Codebook(shape, nn.Parameter(torch.randn((clusters,) if length == 1 else (clusters, length))))
    made.share(torch.randn(shape))
    return made


def by_hand(made: Codebook, shape: tuple[int, ...]) -> Tensor:
    """The shared weight as plain differentiable operations: a one-hot product."""
    centroids = made.centroids.reshape(len(made.centroids), -1)
    return (nn.functional.one_hot(made.codes.flatten(), len(centroids)).float() @ centroids).reshape(shape)


@pytest.mark.parametrize(("shape", "length"), [((6, 8), 1), ((4, 3, 3, 3), 1), ((6, 8), 4), ((4, 2, 3, 3), 9)])
def test_a_centroid_has_the_sum_of_its_weights_gradients(shape: tuple[int, ...], length: int) -> None:
    made, factor = book(shape, 5, length), torch.randn(shape)
    latent = torch.randn(shape, requires_grad=True)
    found = made(latent)
    torch.testing.assert_close(found, by_hand(made, shape), rtol=0, atol=0)
    (found.sin() * factor).sum().backward()
    (expected,) = torch.autograd.grad((by_hand(made, shape).sin() * factor).sum(), made.centroids)
    assert made.centroids.grad is not None
    torch.testing.assert_close(made.centroids.grad, expected)
    assert latent.grad is not None
    assert latent.grad.count_nonzero() == 0


def test_a_centroids_gradient_summed_weight_by_weight() -> None:
    made = Codebook((2, 3), nn.Parameter(torch.tensor([-1.0, 0.0, 2.0])))
    made.share(torch.tensor([[-0.9, 0.1, 1.7], [0.2, -5.0, -0.2]]))
    assert made.codes.tolist() == [[0, 1, 2], [1, 0, 1]]
    made(torch.zeros(2, 3)).backward(torch.tensor([[1.0, 10.0, 100.0], [20.0, 2.0, 30.0]]))
    assert made.centroids.grad is not None
    assert made.centroids.grad.tolist() == [3.0, 60.0, 100.0]


def test_before_it_shares_it_changes_nothing_and_all_have_gradients() -> None:
    made = Codebook((3, 4), nn.Parameter(torch.zeros(2)))
    latent = torch.randn(3, 4, requires_grad=True)
    found = made(latent)
    assert torch.equal(found, latent)
    found.square().sum().backward()
    assert latent.grad is not None
    assert torch.equal(latent.grad, 2 * latent)
    # DDP stops at a parameter without a gradient.
    assert made.centroids.grad is not None
    assert made.centroids.grad.tolist() == [0.0, 0.0]
    raw = Stored(latent.detach())
    assert made.store(raw) is raw


@pytest.mark.parametrize(("shape", "length"), [((6, 8), 1), ((4, 2, 3, 3), 1), ((4, 2, 3, 3), 9)])
def test_what_is_stored_is_what_is_computed(shape: tuple[int, ...], length: int) -> None:
    made = book(shape, 6, length)
    stored = made.store(Stored(torch.randn(shape)))
    assert torch.equal(stored.value, made(torch.zeros(shape)))
    assert torch.equal(stored.dequantize(), stored.value)
    assert stored.bits == 3
    assert stored.codes is not None
    assert stored.codes.shape == (shape if length == 1 else (shape[0], torch.Size(shape[1:]).numel() // length))


def test_a_mask_on_disk_stays_below_and_above() -> None:
    made, mask = book((4, 4), 4), torch.rand(4, 4) < 0.5
    below = made.store(Stored(torch.randn(4, 4)).masked(mask))
    above = made.store(Stored(torch.randn(4, 4))).masked(mask)
    for stored in (below, above):
        assert stored.value[~mask].count_nonzero() == 0
        assert torch.equal(stored.value[mask], made(torch.zeros(4, 4))[mask])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
def test_it_compiles_whole_and_on_the_way() -> None:
    layer = nn.Linear(8, 4)
    made = Codebook((4, 8), nn.Parameter(torch.zeros(4)))
    parametrize.register_parametrization(layer, "weight", made)
    compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), torch.randn(3, 8)
    torch.testing.assert_close(compiled(x), layer(x))
    made.centroids.data.copy_(torch.randn(4))
    made.share(torch.randn(4, 8))
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).square().sum().backward()
    (expected,) = torch.autograd.grad(layer(x).square().sum(), made.centroids)
    assert made.centroids.grad is not None
    torch.testing.assert_close(made.centroids.grad, expected)
