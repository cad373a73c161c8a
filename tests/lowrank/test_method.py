import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.compressor import Compressor
from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.lowrank.method import LowRank
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.prune.method import Prune
from lightning_compress.share.tie import Tie

IMAGE = torch.zeros(2, 8, 9, 9)


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 12)
    )


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for name, tensor in model.state_dict().items() if name.endswith("weight")]


def test_fixed_ranks_and_names() -> None:
    model = net()
    LowRank({"^0$": (2, 3), "": 4}).attach(model, IMAGE)
    assert shapes(model) == [(2, 8, 1, 1), (3, 2, 3, 3), (16, 3, 1, 1), (4, 16, 1, 1), (16, 4, 1, 1), (4, 64), (12, 4)]
    biases = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert biases == ["0.2.bias", "2.1.bias", "5.1.bias"]


def test_shares_and_forms() -> None:
    model = net()
    LowRank(share=0.25, form={"0": "spatial"}, select="^[05]$").attach(model, IMAGE)
    assert shapes(model)[:2] == [(6, 8, 1, 3), (16, 6, 3, 1)]
    assert shapes(model)[-2:] == [(3, 64), (12, 3)]


def test_energy_keeps_that_share_of_the_squares() -> None:
    model = net()
    before = model[5].weight.detach().clone()
    LowRank(energy=0.5, select="5").attach(model, IMAGE)
    product = (model[5][1].weight @ model[5][0].weight).detach()
    rank = len(model[5][0].weight)
    kept = [float((torch.linalg.svdvals(before)[:r] ** 2).sum() / before.square().sum()) for r in (rank - 1, rank)]
    assert kept[0] < 0.5 <= kept[1]
    assert 1 - float((before - product).square().sum() / before.square().sum()) == pytest.approx(kept[1], rel=1e-5)


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_a_budget_is_met_closely_by_one_energy(budget: str) -> None:
    torch.manual_seed(0)
    model, example = ResNetCIFAR(8), torch.zeros(1, 3, 32, 32)
    before = num_params(model), sum(macs(model, example).values())
    changed = LowRank(**{budget: 0.4}, exclude=["<first>"]).attach(model, example)  # type: ignore[arg-type]
    after = num_params(changed), sum(macs(changed, example).values())
    found = after[budget == "macs"] / before[budget == "macs"]
    assert 0.37 < found <= 0.4
    with pytest.raises(ValueError, match=f"{budget}=0.001 of the model is out of reach: the smallest ranks leave 0.0"):
        LowRank(**{budget: 0.001}).attach(ResNetCIFAR(8), example)  # type: ignore[arg-type]


def test_layers_that_would_not_get_smaller_stay_and_are_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), *net()[2:])
    model[2] = nn.Conv2d(4, 16, 1)
    with caplog.at_level(logging.WARNING):
        LowRank(rank=4).attach(model, IMAGE)
    assert "LowRank leaves as they are: 0 (it has groups), 1 (rank (4,) saves nothing), 2" in caplog.text
    assert [type(layer) for layer in model][:3] == [nn.Conv2d] * 3
    with pytest.raises(ValueError, match=r"LowRank would change nothing.*: 0 \(rank \(9,\) saves nothing\)"):
        LowRank(rank=9).attach(nn.Sequential(nn.Linear(9, 9)), torch.zeros(1, 9))


def test_a_weight_that_two_layers_have_stays() -> None:
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 9))
    model[1].weight = model[0].weight
    LowRank(rank=2).attach(model, torch.zeros(1, 9))
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear, nn.Sequential]


def test_a_tied_layer_takes_its_form_once() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9))
    methods = Compressor([Tie(["^[02]$"]), LowRank(rank=2)])
    model = methods.attach(model, torch.zeros(1, 9))
    assert model[0] is model[2]
    found = methods.finalize(model, torch.zeros(1, 9))
    assert set(found.stored) == {"0.0.weight", "0.1.weight", "0.1.bias"}
    again: Any = edits.replay(nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9)), found.edits)
    assert again[0] is again[2]


def test_channels_of_the_factors_are_pruned_and_the_edits_rebuild_it() -> None:
    base = net()
    methods = Compressor([LowRank(rank=6), Prune(0.5, pattern="channel", exclude=["<last>"])])
    model = methods.attach(copy.deepcopy(base), IMAGE)
    methods.prepare(model, [])
    methods.update(model)
    found = methods.finalize(model, IMAGE)
    assert [edit["kind"] for edit in found.edits][:3] == ["factor"] * 3
    assert shapes(found.model)[:3] == [(3, 8, 1, 1), (3, 3, 3, 3), (8, 3, 1, 1)]
    assert shapes(edits.replay(net(), found.edits)) == shapes(found.model)
    inputs = torch.randn(IMAGE.shape)
    torch.testing.assert_close(found.model(inputs), surgery.plain(model).eval()(inputs))


def test_a_run_that_resumes_must_find_the_same_ranks() -> None:
    compressors = []
    for rank in (2, 3):
        method = Compressor([LowRank(rank=rank)])
        method.attach(net(), IMAGE)
        compressors.append(method)
    compressors[0].load_state_dict(compressors[0].state_dict())
    with pytest.raises(ValueError, match=r"LowRank: '0' is \('tucker', \[3, 3\]\) in the checkpoint, here it would be"):
        compressors[0].load_state_dict(compressors[1].state_dict())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs one of rank, share, energy, macs, params; got none"),
        ({"rank": 2, "energy": 0.5}, "needs one of"),
        ({"energy": 1.5}, r"energy is a share in \(0, 1\]; got 1.5"),
        ({"macs": 0}, r"macs is a share in \(0, 1\]; got 0"),
        ({"rank": 2, "form": "tuker"}, "form must be one of svd, tucker, cp, spatial; got 'tuker'"),
        ({"rank": 0}, "a rank is a whole number from 1 up"),
        ({"rank": (2, 2)}, "for 'tucker' perhaps a pair"),
        ({"rank": {"fc9": 2}}, "pattern 'fc9' counts for no layer"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LowRank(**options).attach(net(), IMAGE)
