import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.models.small_conv import SmallConv


def test_size_and_macs_by_hand() -> None:
    assert num_params(SmallConv()) == 9 * (16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 650
    count = 64 * 9 * 16 + 16 * 9 * 16 * 32 + 16 * 9 * 32 * 64 + 640
    assert sum(macs(SmallConv(), torch.zeros(1, 1, 8, 8)).values()) == count == 378_496


def test_learns_the_digits_in_seconds() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - 0.3
    labels = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(labels))
    test, train = order[:360], order[360:]
    net = SmallConv(width=0.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=6e-3)
    for _ in range(5):
        for batch in torch.split(train[torch.randperm(len(train))], 64):
            optimizer.zero_grad()
            loss: Tensor = F.cross_entropy(net(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    net.eval()
    with torch.no_grad():
        accuracy = (net(images[test]).argmax(1) == labels[test]).float().mean().item()
    assert accuracy > 0.93
