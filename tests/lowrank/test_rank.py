import numpy as np
import torch

from lightning_compress.lowrank.rank import Spectrum, largest_share


def test_ranks_by_energy_are_those_of_numpy() -> None:
    weight = torch.randn(12, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    array = weight.double().numpy()
    matrices = {
        "svd": [array.reshape(12, -1)],
        "spatial": [array.transpose(0, 2, 1, 3).reshape(36, 24)],
        "tucker": [array.transpose(1, 0, 2, 3).reshape(8, -1), array.reshape(12, -1)],
    }
    for form, unfolded in matrices.items():
        for energy in (0.3, 0.6, 0.95):
            wanted = []
            for matrix in unfolded:
                kept = np.cumsum(np.linalg.svd(matrix, compute_uv=False) ** 2)
                wanted.append(int(np.argmax(kept >= energy * kept[-1])) + 1)
            assert Spectrum(weight, form).ranks(energy) == tuple(wanted), (form, energy)


def test_a_rank_for_cp_is_the_smallest_that_keeps_so_much() -> None:
    draw = torch.Generator().manual_seed(1)
    factors = [torch.randn(size, 2, generator=draw) for size in (6, 5, 3, 3)]
    spectrum = Spectrum(torch.einsum("or,ir,hr,wr->oihw", *factors), "cp")
    assert spectrum.ranks(0.999) == (2,)
    assert spectrum.ranks(0.1) == (1,)


def test_the_largest_share_within_a_budget() -> None:
    def cost(share: float) -> float:
        return float(np.ceil(10 * share))

    assert cost(largest_share(cost, 4.0) or 0.0) == 4.0
    assert largest_share(cost, 99.0) is not None
    assert largest_share(lambda share: 5.0 + share, 4.0) is None
