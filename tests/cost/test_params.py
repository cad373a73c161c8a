import torch
from torch import nn

from lightning_compress.cost.params import num_nonzeros, num_params


def test_counts_tied_parameters_once_and_no_buffers() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False))
    assert num_params(net) == 9 + 6 + 9
    net[2].weight = net[0].weight
    assert num_params(net) == 9 + 6


def test_counts_exact_nonzeros() -> None:
    tensors = [torch.tensor([0.0, -0.0, 1e-38, float("nan")]), torch.tensor([[0, 3], [0, 0]])]
    assert num_nonzeros(iter(tensors)) == 3
