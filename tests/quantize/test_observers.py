import torch

from lightning_compress.quantize import observers

BATCHES = [torch.tensor([[-1.0, 2.0], [0.0, 4.0]]), torch.tensor([[-3.0, 1.0], [0.5, 8.0]])]


def test_min_max_is_the_widest_so_far() -> None:
    running = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    for seen in BATCHES:
        running = observers.min_max(running, seen, 0.5)
    assert running.tolist() == [[-3.0, 2.0], [0.0, 8.0]]


def test_moving_average_by_hand() -> None:
    running = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    for seen in BATCHES:
        running = observers.moving_average(running, seen, 0.75)
    # 0.75 * (0.75 * r + 0.25 * a) + 0.25 * b
    torch.testing.assert_close(
        running,
        torch.tensor(
            [[0.1875 * -1 + 0.25 * -3, 0.1875 * 2 + 0.25], [0.5625 * 2 + 0.125, 0.5625 * 2 + 0.1875 * 4 + 0.25 * 8]]
        ),
    )
