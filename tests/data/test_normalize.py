import pytest
import torch

from lightning_compress.data.normalize import Normalize, channel_statistics, normalization
from lightning_compress.data.samples import Samples


def _samples(dtype: torch.dtype) -> Samples:
    images = torch.randint(0, 256, (50, 3, 4, 5), generator=torch.Generator().manual_seed(0))
    return Samples(images.to(dtype), torch.zeros(50).long(), ["only"])


@pytest.mark.parametrize("chunk", [7, 50, 1000])
def test_statistics_equal_torch_over_everything(chunk: int) -> None:
    samples = _samples(torch.uint8)
    mean, std = channel_statistics(samples, chunk=chunk)
    expected_std, expected_mean = torch.std_mean(samples.inputs.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(std, expected_std)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_auto_makes_mean_zero_and_variance_one(dtype: torch.dtype) -> None:
    samples = _samples(dtype)
    normalize = normalization(samples, "auto", "auto")
    std, mean = torch.std_mean(normalize(samples.inputs), dim=(0, 2, 3), correction=0)
    assert torch.allclose(mean, torch.zeros(3), atol=1e-5)
    assert torch.allclose(std, torch.ones(3), atol=1e-5)
    assert normalize.pixel_scale == (1 / 255 if dtype == torch.uint8 else 1.0)


def test_matches_the_usual_formula() -> None:
    images = _samples(torch.uint8).inputs
    normalize = Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 1 / 255)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    torch.testing.assert_close(normalize(images), (images / 255 - mean) / std)


def test_affine_takes_the_layout_of_the_image() -> None:
    image = torch.zeros(1, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    scale, shift = Normalize((0.0,) * 3, (1.0,) * 3, 1.0).affine(image)
    assert scale.is_contiguous(memory_format=torch.channels_last)
    assert shift.shape == (1, 3, 4, 5)


def test_given_values_are_kept_and_one_number_serves_all_channels() -> None:
    normalize = normalization(_samples(torch.uint8), 0.5, [0.1, 0.2, 0.3])
    assert normalize == Normalize((0.5, 0.5, 0.5), (0.1, 0.2, 0.3), 1 / 255)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.1, 0.2], "auto", "mean needs 3 values, one per channel"),
        ("auto", 0.0, "std must be positive"),
        ("imagenet", 1.0, "'auto', a number or one number per channel, got 'imagenet'"),
    ],
)
def test_wrong_statistics_are_named(mean: object, std: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalization(_samples(torch.uint8), mean, std)  # type: ignore[arg-type]


def test_constant_channel_is_refused() -> None:
    blank = Samples(torch.full((4, 1, 2, 2), 9, dtype=torch.uint8), torch.zeros(4).long(), ["only"])
    with pytest.raises(ValueError, match="a constant channel needs std="):
        normalization(blank, "auto", "auto")


def test_token_ids_stay_as_they_are() -> None:
    ids = torch.tensor([[3, 255, 0]])
    normalize = normalization(Samples(ids, torch.tensor([0]), ["a"]), "auto", "auto")
    assert normalize(ids) is ids
