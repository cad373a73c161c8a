import pytest
import torch

from lightning_compress.data.augment import Augment, RandomCrop, RandomFlip
from lightning_compress.data.batch import Batch
from lightning_compress.data.device_loader import DeviceLoader
from lightning_compress.data.normalize import Normalize
from lightning_compress.data.order import BatchOrder
from lightning_compress.data.samples import Samples
from lightning_compress.data.worker_loader import WorkerLoader

NORMALIZE = Normalize((0.4,), (0.2,), 1 / 255)
AUGMENT: list[Augment] = [RandomCrop(1), RandomFlip()]


@pytest.fixture
def samples() -> Samples:
    images = torch.randint(0, 256, (22, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    return Samples(images, torch.arange(22) % 3, list("abc"))


def _loader(samples: Samples, workers: int, augment: list[Augment]) -> WorkerLoader:
    order = BatchOrder(22, 5, shuffle=True, seed=7)
    return WorkerLoader(samples, order, normalize=NORMALIZE, augment=augment, workers=workers)


def _assert_same(left: list[Batch], right: list[Batch]) -> None:
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(tuple(one), tuple(other))


@pytest.mark.parametrize("augment", [[], AUGMENT])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_device_loader(samples: Samples, workers: int, augment: list[Augment]) -> None:
    loader = _loader(samples, workers, augment)
    resident = DeviceLoader(samples, BatchOrder(22, 5, shuffle=True, seed=7), normalize=NORMALIZE, augment=augment)
    for epoch in (0, 3):
        loader.sampler.set_epoch(epoch)
        resident.sampler.set_epoch(epoch)
        _assert_same(list(loader), list(resident))
    assert len(loader) == len(resident)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_counts_what_was_handed_out_not_what_was_read_ahead(samples: Samples, workers: int) -> None:
    first, second = _loader(samples, workers, AUGMENT), _loader(samples, 0, AUGMENT)
    batches = iter(first)
    next(batches), next(batches)
    assert first.state_dict() == {"epoch": 0, "done": 2}
    second.load_state_dict(first.state_dict())
    _assert_same(list(second), list(batches))
