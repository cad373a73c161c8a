from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core import surgery
from lightning_compress.core.compressor import Compressor
from lightning_compress.models.small_conv import SmallConv
from lightning_compress.quantize.correction import in_order, inputs_of, mean_outputs
from lightning_compress.quantize.method import Quantize

BATCHES = [torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def seasoned() -> Any:
    """A network whose batch norms have seen inputs."""
    model = SmallConv(width=0.25).train()
    with torch.no_grad():
        for batch in BATCHES * 3:
            model(batch)
    return model


def prepared(**options: Any) -> tuple[Any, Any]:
    model = seasoned()
    reference = surgery.plain(model).eval()
    method = Quantize(3, 4, **options)
    method.attach(model, BATCHES[0])
    method.prepare(model, [(batch,) for batch in BATCHES])
    return model.eval(), reference


def outputs_at(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Mean over everything but channels of what these modules put out, as PyTorch's hooks see it."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _m, _a, y, name=name: found[name].append(y))
        for name in names
    ]
    with torch.no_grad():
        for batch in BATCHES:
            model(batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(ys).mean(dim=[d for d in range(ys[0].dim()) if d != 1]) for name, ys in found.items()}


@pytest.mark.parametrize("more", [{}, {"outputs": True}, {"equalize": True}, {"adaround": 20}])
def test_the_mean_error_of_every_layer_is_zero_on_what_was_shown(more: dict[str, Any]) -> None:
    # A convolution has no bias here: what stands for it is the running mean of the norm after it. With equalisation
    # norms are not comparable one by one, the logits are.
    names = ["fc"] if "equalize" in more else ["bn1", "bn2", "bn3", "fc"]
    model, reference = prepared(correct_bias=True, **more)
    want, found = outputs_at(reference, names), outputs_at(model, names)
    for name in names:
        torch.testing.assert_close(found[name], want[name], rtol=1e-4, atol=2e-5)
    model, reference = prepared(**more)
    want, found = outputs_at(reference, names), outputs_at(model, names)
    assert all(float((found[name] - want[name]).abs().max()) > 1e-3 for name in names)


def test_the_deployed_model_has_it_too() -> None:
    model = seasoned()
    reference = surgery.plain(model).eval()
    compressor = Compressor([Quantize(3, 4, correct_bias=True)])
    model = compressor.attach(model, BATCHES[0])
    compressor.prepare(model, [(batch,) for batch in BATCHES], trains=False)
    compact = compressor.finalize(model, BATCHES[0])
    want, found = outputs_at(reference, ["fc"]), outputs_at(compact.model, ["fc"])
    torch.testing.assert_close(found["fc"], want["fc"], rtol=1e-4, atol=2e-5)


def test_a_layer_with_neither_bias_nor_norm_is_left_alone() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 3, bias=False))
    method = Quantize(2, None, correct_bias=True)
    method.attach(model, torch.ones(2, 4))
    method.prepare(model, [(torch.randn(8, 4),)])
    assert model[0].bias is None


def test_order_is_that_of_running() -> None:
    class Back(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late, self.early, self.never = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.late(self.early(x))
            return self.early(x)  # type: ignore[no-any-return]

    model = Back()
    assert in_order(model, ["late", "early", "never"], torch.ones(1, 2)) == ["early", "late"]
    first, second = inputs_of(model, "early", [torch.ones(1, 2)])
    assert torch.equal(first, torch.ones(1, 2))
    torch.testing.assert_close(second, model.late(model.early(first)))


@pytest.mark.parametrize(
    ("layer", "x", "dims"),
    [
        (nn.Linear(4, 3), torch.randn(5, 4), [0]),
        (nn.Linear(4, 3), torch.randn(5, 6, 4), [0, 1]),
        (nn.Conv1d(2, 3, 3), torch.randn(5, 2, 9), [0, 2]),
        (nn.Conv2d(2, 3, 3), torch.randn(5, 2, 9, 9), [0, 2, 3]),
    ],
)
def test_mean_outputs_keep_channels(layer: nn.Module, x: Tensor, dims: list[int]) -> None:
    torch.testing.assert_close(mean_outputs(layer, [x[:2], x[2:]]), layer(x).mean(dims))


def test_an_output_layer_that_is_tied_to_embeddings_is_corrected() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20)).eval()
    model[1].weight = model[0].weight
    reference: Any = surgery.plain(model)
    tokens = torch.arange(20)[None]
    method = Quantize(3, None, correct_bias=True)
    method.attach(model, tokens)
    method.prepare(model, [(tokens,)])
    assert not torch.equal(model[1].weight, reference[1].weight)
    torch.testing.assert_close(model(tokens).mean((0, 1)), reference(tokens).mean((0, 1)), atol=1e-5, rtol=1e-4)
