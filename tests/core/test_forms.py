from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core import decompose, forms


def conv(**options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, (3, 5), **options)


CONVS: dict[str, Callable[[], nn.Conv2d]] = {
    "plain": conv,
    "strided": lambda: conv(stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
    "reflect": lambda: conv(padding=(1, 2), padding_mode="reflect", bias=False),
    "same": lambda: conv(padding="same"),
    "valid": lambda: conv(padding="valid"),
    "1x1": lambda: nn.Conv2d(4, 6, 1, stride=2, padding=1),
}


def made(layer: nn.Module, form: str, ranks: tuple[int, ...]) -> nn.Sequential:
    found = forms.blank(layer, form, ranks)
    decompose.fill(found, layer, form, ranks)
    return found


@pytest.mark.parametrize(
    ("kind", "form"),
    [(kind, form) for kind in CONVS for form in ("svd", "tucker", *(("cp", "spatial") if kind != "1x1" else ()))],
)
def test_at_full_rank_nothing_is_lost(kind: str, form: str) -> None:
    layer = CONVS[kind]()
    found = made(layer, form, forms.full_ranks(layer.weight.shape, form))
    inputs = torch.randn(2, 4, 9, 12)
    torch.testing.assert_close(found(inputs), layer(inputs), rtol=1e-5, atol=1e-5)
    assert {type(each).__module__ for each in found} == {"torch.nn.modules.conv"}


def test_at_full_rank_a_linear_layer_is_itself() -> None:
    layer, inputs = nn.Linear(5, 3), torch.randn(2, 7, 5)
    torch.testing.assert_close(made(layer, "svd", (3,))(inputs), layer(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "strided", "same"])
def test_a_separable_kernel_is_found_exactly(kind: str) -> None:
    layer = CONVS[kind]()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(6, 4, 1, 1) * torch.randn(1, 4, 3, 5))
    inputs = torch.randn(2, 4, 9, 12)
    torch.testing.assert_close(made(layer, "separable", ())(inputs), layer(inputs), rtol=1e-4, atol=1e-5)


def test_a_grouped_kernel_is_found_exactly_behind_its_shuffle() -> None:
    layer, inputs = conv(padding=1), torch.randn(2, 4, 9, 12)
    wanted = nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(4, 6, (3, 5), padding=1, groups=2))
    with torch.no_grad():  # the kernel that does the same: what each filter answers to a single one in each place
        layer.bias.copy_(wanted[1].bias)  # type: ignore[arg-type, union-attr]
        for place in range(60):
            probe = torch.zeros(60).index_fill(0, torch.tensor(place), 1.0).view(1, 4, 3, 5)
            answer = nn.functional.conv2d(wanted[0](probe), wanted[1].weight, groups=2)  # type: ignore[arg-type]
            layer.weight.view(6, 60)[:, place] = answer.flatten()
    torch.testing.assert_close(wanted(inputs), layer(inputs), rtol=1e-5, atol=1e-5)
    found = made(layer, "grouped", (2,))
    torch.testing.assert_close(found[1].weight, wanted[1].weight)
    torch.testing.assert_close(found(inputs), layer(inputs), rtol=1e-5, atol=1e-5)


def test_a_new_form_is_trained_where_and_as_the_layer_is() -> None:
    layer = nn.Linear(6, 4).double().requires_grad_(False).eval()
    found = forms.blank(layer, "svd", (2,))
    assert {(p.dtype, p.requires_grad, p.device.type) for p in found.parameters()} == {(torch.float64, False, "cpu")}
    assert not any(module.training for module in found.modules())


def test_making_one_draws_no_random_number() -> None:
    layer, before = conv(), torch.random.get_rng_state()
    made(layer, "cp", (9,))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("layer", "form", "ranks", "said"),
    [
        (nn.Linear(4, 4), "svdd", (1,), "no form 'svdd'.*svd, tucker"),
        (nn.Linear(4, 4), "tucker", (1, 1), "a linear layer has no 'tucker' form"),
        (nn.Conv2d(4, 4, 3, groups=2), "svd", (1,), "it has groups"),
        (nn.Conv2d(4, 4, (1, 3)), "spatial", (1,), "a side of its kernel is 1"),
        (nn.Conv1d(4, 4, 3), "svd", (1,), "it is a Conv1d, not a plain"),
        (nn.Linear(4, 3), "svd", (4,), r"ranks from 1 to \(3,\); got \(4,\)"),
        (nn.Linear(4, 3), "svd", (0,), r"got \(0,\)"),
        (nn.Linear(4, 3), "svd", (1.0,), r"got \(1.0,\)"),
        (nn.Conv2d(4, 6, 3), "tucker", (2,), r"to \(4, 6\); got \(2,\)"),
        (nn.Conv2d(12, 18, 3), "grouped", (4,), "4 groups do not divide"),
    ],
)
def test_what_there_is_no_form_for(layer: nn.Module, form: str, ranks: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        forms.shaped(layer, form, ranks)
