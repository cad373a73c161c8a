import numpy as np
import torch

from lightning_compress.core import decompose


def kernel(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def tail(matrix: np.ndarray, rank: int) -> float:
    """The squared error of the best matrix of that rank (Eckart and Young)."""
    return float((np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2).sum())


def test_svd_is_the_best_of_its_rank() -> None:
    weight = kernel(7, 5, 3, 3)
    first, second = decompose.svd(weight, 4)
    product = torch.einsum("or,rihw->oihw", second[:, :, 0, 0], first)
    error = float((weight - product).square().sum())
    np.testing.assert_allclose(error, tail(weight.reshape(7, -1).numpy(), 4), rtol=1e-9)
    np.testing.assert_allclose(first.flatten(1).norm(dim=1), second.flatten(1).norm(dim=0))


def test_spatial_is_the_best_of_its_rank() -> None:
    weight = kernel(4, 5, 3, 2)
    along, down = decompose.spatial(weight, 6)
    product = torch.einsum("orh,riw->oihw", down[..., 0], along[:, :, 0])
    matrix = weight.numpy().transpose(0, 2, 1, 3).reshape(12, 10)
    np.testing.assert_allclose(float((weight - product).square().sum()), tail(matrix, 6), rtol=1e-9)


def test_tucker_finds_what_has_its_ranks_and_betters_the_higher_order_svd() -> None:
    core, into, outof = kernel(3, 2, 3, 3), kernel(6, 2), kernel(8, 3)
    weight = torch.einsum("srhw,os,ir->oihw", core, outof, into)

    def rebuilt(of: torch.Tensor, ranks: tuple[int, int]) -> torch.Tensor:
        first, middle, last = decompose.tucker(of, *ranks)
        return torch.einsum("ri,srhw,os->oihw", first[..., 0, 0], middle, last[..., 0, 0])

    torch.testing.assert_close(rebuilt(weight, (2, 3)), weight)
    noisy = kernel(8, 6, 3, 3)
    u, v = (
        np.linalg.svd(np.moveaxis(noisy.numpy(), mode, 0).reshape(noisy.shape[mode], -1))[0][:, :3] for mode in (0, 1)
    )
    hosvd = np.einsum("oa,ib,pa,qb,pqhw->oihw", u, v, u, v, noisy.numpy())
    errors = [float((noisy - each).square().sum()) for each in (rebuilt(noisy, (3, 3)), torch.from_numpy(hosvd))]
    assert 0.9 * errors[1] < errors[0] < 0.999 * errors[1]


def test_cp_finds_what_has_its_rank() -> None:
    factors = [kernel(size, 3) for size in (6, 5, 3, 3)]
    weight = torch.einsum("or,ir,hr,wr->oihw", *factors)
    found = decompose.cp_factors(weight, 3)
    torch.testing.assert_close(decompose.cp_sum(found), weight, rtol=1e-5, atol=1e-5)
    norms = torch.stack([factor.norm(dim=0) for factor in found])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


def test_cp_keeps_more_with_more_ranks_and_stays_bounded() -> None:
    weight = kernel(8, 6, 3, 3)
    errors = []
    for rank in (2, 6, 18, 54):
        factors = decompose.cp_factors(weight, rank)
        errors.append(float((weight - decompose.cp_sum(factors)).square().sum() / weight.square().sum()))
        assert all(float(factor.abs().max()) < 10 for factor in factors)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.95
    assert errors[-1] < 1e-9


def test_separable_is_the_best_for_each_input_channel() -> None:
    weight = kernel(7, 3, 3, 3)
    kernels, points = decompose.separable(weight)
    product = points * kernels[None, :, 0]
    for channel in range(3):
        error = float((weight[:, channel] - product[:, channel]).square().sum())
        np.testing.assert_allclose(error, tail(weight[:, channel].reshape(7, 9).numpy(), 1), rtol=1e-9)
