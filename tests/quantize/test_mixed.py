from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.quantize.gates import GatedInput, GatedWeight, Gates
from lightning_compress.quantize.mixed import BayesianBits
from lightning_compress.share.method import Share


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(32, 4, generator=generator), torch.randint(3, (32,), generator=generator)) for _ in range(3)]


def ready(method: BayesianBits, horizon: int = 10) -> tuple[Any, Compressor]:
    model, compressor = net(), Compressor([method])
    compressor.attach(model, torch.randn(2, 4))
    compressor.prepare(model, batches())
    compressor.horizon = horizon
    return model, compressor


def term(model: Any, compressor: Compressor) -> Tensor:
    inputs, targets = batches()[0]
    outputs = model(inputs)
    step = compressor.step((inputs, targets), outputs, F.cross_entropy(outputs, targets), model)
    return compressor.loss(step)["bits"]


def test_the_term_is_weighted_by_each_layers_share_of_the_largest() -> None:
    model, compressor = ready(BayesianBits(0.5, prune=False, initial=0.0))
    q = 0.8318
    shares = (4 * 32 + 32 * 8 + 8 * 3) / (32 * 8)
    wanted = 0.5 * 2 * shares * (2 + 4 * q + 8 * q * q)
    assert float(term(model, compressor).detach()) == pytest.approx(wanted, rel=1e-3)


def test_gates_shut_under_a_strong_term_and_stay_once_fixed() -> None:
    model, compressor = ready(BayesianBits(1.0, fix=0.5, initial=1.0, gate_lr=0.5, prune=False), horizon=20)
    groups = compressor.param_groups()
    assert [group.get("lr") for group in groups] == [0.5, None]
    own = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in own]
    optimizer = torch.optim.Adam([{"params": rest}, *groups], lr=1e-3)
    seen = []
    for _ in range(20):
        optimizer.zero_grad()
        found = term(model, compressor)
        (found + model(batches()[0][0]).square().mean()).backward()
        optimizer.step()
        compressor.update(model, [optimizer])
        bits = [module.bits for module in model.modules() if isinstance(module, GatedWeight | GatedInput)]
        seen.append((float(found.detach()), bits))
    assert seen[8][0] > 0.0
    assert seen[10][0] == 0.0
    assert seen[9][1] == seen[19][1] == [2] * 6
    compact = compressor.finalize(model, torch.ones(1, 4))
    assert [compact.stored[f"{name}.weight"].bits for name in ("0", "3", "5")] == [2, 2, 2]
    inputs = [module for module in compact.model.modules() if isinstance(module, FixedQuantizer)]
    assert [quantizer.bits for quantizer in inputs] == [2, 2, 2]
    x = batches()[1][0]
    torch.testing.assert_close(compact.model(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_without_a_term_everything_has_eight_bits() -> None:
    model, compressor = ready(BayesianBits(0.0))
    compressor.steps = 9
    compressor.update(model)
    compact = compressor.finalize(model, torch.ones(1, 4))
    assert {compact.stored[f"{name}.weight"].bits for name in ("0", "3", "5")} == {8}
    assert compact.stored["0.weight"].value.flatten(1).any(1).all()


def test_fixed_gates_go_through_a_checkpoint() -> None:
    model, compressor = ready(BayesianBits(0.1, initial=-1.0, fix=0.5))
    for _ in range(6):
        compressor.update(model)
    twin, other = ready(BayesianBits(0.1, initial=6.0, fix=0.5))
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(compressor.state_dict())
    assert all(gates.fixed for gates in twin.modules() if isinstance(gates, Gates))
    other.update(twin)
    x = batches()[0][0]
    assert torch.equal(twin.train()(x), model.train()(x))
    assert float(term(twin, other).detach()) == 0.0


def test_a_codebook_below_needs_every_channel() -> None:
    model = net()
    Share(bits=2, select="^3$").attach(model, None)
    with pytest.raises(ValueError, match=r"BayesianBits: '3' has a codebook, which serves all channels; write prune"):
        BayesianBits().attach(model, torch.ones(2, 4))
    method = BayesianBits(prune=False)
    method.attach(model, torch.ones(2, 4))
    assert len(method._shares) == 6


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match=r"strength is from 0 up, fix inside \(0, 1\); got strength=-1, fix=0.7"):
        BayesianBits(-1)
    with pytest.raises(ValueError, match=r"got strength=0\.01, fix=1\.0"):
        BayesianBits(fix=1.0)
    with pytest.raises(ValueError, match="BayesianBits needs example=, one batch"):
        BayesianBits().attach(net(), None)
