from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from lightning_compress.core.method import Compact
from lightning_compress.export import pytorch, verify

Make = Callable[[int | None, int | None], Compact]

compiles = pytest.mark.skipif(pytorch.why_not() is not None, reason=str(pytorch.why_not()))


def _integer_layers() -> dict[str, int]:
    """How many layers Inductor lowered to integer kernels since the counters were cleared."""
    return {kind: counters["inductor"][f"q{kind}_weight_prepack_matcher_count"] for kind in ("conv", "linear")}


@pytest.mark.parametrize("bits", [(None, None), (8, 8), (4, 4)], ids=str)
def test_eager_is_the_model(bits: tuple[int | None, int | None], residual: Make, digits: Tensor) -> None:
    compact = residual(*bits)
    assert verify.compare(compact.model, pytorch.eager(compact), digits)["max_error"] == 0.0


@pytest.mark.parametrize("bits", [(8, 8), (7, 8), (4, 4), (7, None), (None, 8)], ids=str)
def test_the_form_that_inductor_looks_for_is_the_same_model(
    bits: tuple[int | None, int | None], residual: Make, digits: Tensor
) -> None:
    compact = residual(*bits)
    lowered = pytorch._lowered(compact)
    weights = [module for module in lowered.modules() if isinstance(module, pytorch._Weight)]
    assert len(weights) == (0 if None in bits else 4), "an integer kernel needs codes on both sides"
    with torch.no_grad():
        for inputs in (digits, 4 * digits):
            found = verify.distance(compact.model(inputs), lowered(inputs))
            # A sum at the border of two codes may round to the other one.
            assert found["relative_error"] < verify.tolerance(compact.model) / 4


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("bits", [(7, 8), (4, 4)], ids=str)
def test_compiled_runs_on_integers(bits: tuple[int, int], residual: Make, digits: Tensor) -> None:
    compact = residual(*bits)
    run = pytorch.compiled(compact)
    counters.clear()
    for inputs in (digits, 4 * digits):
        found = verify.compare(compact.model, run, inputs)
        assert found["relative_error"] < verify.tolerance(compact.model) / 4
    assert _integer_layers() == {"conv": 3, "linear": 1}


@compiles
@pytest.mark.slow
def test_models_do_not_share_the_few_variants_that_are_kept() -> None:
    """Otherwise the ninth model of a process would run in eager mode."""
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (1, 2, 3):
            net = nn.Linear(4, width).eval().requires_grad_(False)
            assert verify.compare(net, pytorch.compiled(Compact(net, {})), torch.randn(3, 4))["max_error"] < 1e-5
    assert counters["stats"]["unique_graphs"] == 3
    assert _integer_layers() == {"conv": 0, "linear": 0}


def test_threads_are_its_own() -> None:
    before = torch.get_num_threads()
    seen = []

    class Watch(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return inputs

    pytorch.eager(Compact(Watch(), {}), before + 1)(np.zeros((1, 1), np.float32))
    assert (seen, torch.get_num_threads()) == ([before + 1], before)
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        pytorch.eager(Compact(Watch(), {}), 0)


def test_what_cannot_be_compiled_says_so() -> None:
    class Odd(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs if float(inputs.sum()) > 0 else -inputs

    with pytest.raises(ValueError, match=r"torch\.compile cannot compile this model"):
        pytorch.compiled(Compact(Odd(), {}))(np.zeros((1, 1), np.float32))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "needs a C++ compiler and there is no 'no-such-compiler': install g++" in str(pytorch.why_not())
