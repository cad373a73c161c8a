from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from lightning_compress.data.augment import Augment, Jitter, RandomCrop, RandomFlip
from lightning_compress.data.batch import Batch
from lightning_compress.data.device_loader import DeviceLoader
from lightning_compress.data.normalize import Normalize
from lightning_compress.data.order import BatchOrder
from lightning_compress.data.samples import Samples
from lightning_compress.data.views import block

NORMALIZE = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 1 / 255)


@pytest.fixture
def samples() -> Samples:
    generator = Generator().manual_seed(0)
    images = torch.randint(0, 256, (22, 3, 8, 6), generator=generator).byte()
    return Samples(images, torch.randint(4, (22,), generator=generator), list("abcd"))


def _normalised(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(NORMALIZE.mean).view(3, 1, 1)) / torch.tensor(NORMALIZE.std).view(3, 1, 1)


def _same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_equal_a_loop_over_the_order(samples: Samples, channels_last: bool) -> None:
    augment: list[Augment] = [RandomCrop(2), Jitter(1), RandomFlip()]
    order = BatchOrder(22, 5, shuffle=True, seed=3)
    loader = DeviceLoader(samples, order, normalize=NORMALIZE, augment=augment, channels_last=channels_last)
    batches = list(loader)
    assert [len(batch.targets) for batch in batches] == [5, 5, 5, 5, 2]
    for batch, draw in zip(batches, BatchOrder(22, 5, shuffle=True, seed=3).draws(), strict=True):
        images, generator = samples.inputs[draw.positions], Generator().manual_seed(draw.seed)
        for transform in augment:
            images = transform(images, generator)
        torch.testing.assert_close(batch.inputs, _normalised(images))
        assert torch.equal(batch.targets, samples.labels[draw.positions])
        assert torch.equal(batch.index, draw.positions)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.inputs.is_contiguous(memory_format=layout)


def test_view_says_whether_a_random_transform_was_there(samples: Samples) -> None:
    plain = DeviceLoader(samples, BatchOrder(22, 10), normalize=NORMALIZE)
    moved = DeviceLoader(samples, BatchOrder(22, 10), normalize=NORMALIZE, augment=[Jitter(1)])
    assert [batch.view.tolist() for batch in plain] == [[0] * 10, [0] * 10, [0] * 2]
    assert [batch.view.tolist() for batch in moved] == [[-1] * 10, [-1] * 10, [-1] * 2]
    assert all(part.dtype == torch.int64 for batch in moved for part in (batch.targets, batch.index, batch.view))


def test_float_samples_survive_an_epoch_unchanged() -> None:
    inputs = torch.rand(6, 1, 2, 2)
    loader = DeviceLoader(
        Samples(inputs, torch.zeros(6).long(), ["a"]), BatchOrder(6, 4), normalize=Normalize((0.5,), (2.0,), 1.0)
    )
    kept = inputs.clone()
    seen = torch.cat([batch.inputs for batch in loader])
    torch.testing.assert_close(seen, (kept - 0.5) / 2)
    assert torch.equal(inputs, kept)


def test_an_epoch_depends_on_its_number_alone(samples: Samples) -> None:
    def epoch(number: int, noise: int) -> list[Batch]:
        torch.manual_seed(noise)
        order = BatchOrder(22, 5, shuffle=True)
        loader = DeviceLoader(samples, order, normalize=NORMALIZE, augment=[RandomCrop(2)])
        for earlier in range(noise):
            order.set_epoch(earlier)
            list(loader)
        order.set_epoch(number)
        return list(loader)

    assert _same(epoch(2, noise=0), epoch(2, noise=2))
    assert not _same(epoch(2, noise=0), epoch(1, noise=0))


def _by_index(loader: DeviceLoader, epoch: int) -> Tensor:
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    index = torch.cat([batch.index for batch in batches])
    return torch.cat([batch.inputs for batch in batches])[index.argsort()]


@pytest.mark.parametrize("channels_last", [False, True])
def test_views_come_back(samples: Samples, channels_last: bool) -> None:
    order = BatchOrder(22, 5, shuffle=True, seed=3)
    options: dict[str, Any] = {"normalize": NORMALIZE, "augment": [RandomCrop(2)], "channels_last": channels_last}
    loader = DeviceLoader(samples, order, views=2, **options)
    first, second, third = (_by_index(loader, epoch) for epoch in range(3))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    expected = NORMALIZE(block(samples.inputs, [RandomCrop(2)], seed=3, view=1, number=0))
    torch.testing.assert_close(first, expected)


def test_global_random_state_stays(samples: Samples) -> None:
    before = torch.random.get_rng_state()
    list(DeviceLoader(samples, BatchOrder(22, 5, shuffle=True), normalize=NORMALIZE, augment=[RandomFlip()]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_resume_inside_an_epoch_gives_the_remaining_batches(samples: Samples) -> None:
    def loader() -> DeviceLoader:
        return DeviceLoader(samples, BatchOrder(22, 5, shuffle=True), normalize=NORMALIZE, augment=[RandomCrop(1)])

    first, second = loader(), loader()
    batches = iter(first)
    next(batches), next(batches)
    second.load_state_dict(first.state_dict())
    assert _same(list(second), list(batches))


def test_nothing_moves_before_the_first_batch(samples: Samples) -> None:
    loader = DeviceLoader(samples, BatchOrder(22, 5), normalize=NORMALIZE).to("meta")
    assert loader._resident is None
    assert next(iter(loader)).inputs.device.type == "meta"
    assert next(iter(loader.to("cpu"))).inputs.device.type == "cpu"


def test_length_is_the_number_of_batches(samples: Samples) -> None:
    assert len(DeviceLoader(samples, BatchOrder(22, 5), normalize=NORMALIZE)) == 5
    assert len(DeviceLoader(samples, BatchOrder(22, 5, drop_last=True), normalize=NORMALIZE)) == 4


@pytest.mark.gpu
def test_gpu_gives_the_batches_of_the_cpu(samples: Samples) -> None:
    def epoch(device: str) -> list[Batch]:
        augment: list[Augment] = [RandomCrop(2), RandomCrop(2, "reflect"), Jitter(1), RandomFlip()]
        order = BatchOrder(22, 5, shuffle=True)
        return list(DeviceLoader(samples, order, normalize=NORMALIZE, augment=augment).to(device))

    for gpu, cpu in zip(epoch("cuda"), epoch("cpu"), strict=True):
        assert gpu.inputs.is_cuda
        torch.testing.assert_close(tuple(part.cpu() for part in gpu), tuple(cpu))
