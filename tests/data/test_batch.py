import torch
from lightning_fabric.utilities import move_data_to_device

from lightning_compress.data.batch import Batch


def test_trainer_moves_it_as_what_it_is() -> None:
    batch = Batch(torch.zeros(2, 1), *(torch.tensor([i, i]) for i in range(3)))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch)
    assert all(part.device.type == "meta" for part in moved)
