from typing import Any

import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.schedule import Linear
from lightning_compress.distill.own import OwnTeacher
from lightning_compress.models.shared_trunk import SharedTrunk

TARGETS = torch.tensor([0, 2, 1, 1, 2, 0])
MAPS = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 12, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


def made(method: OwnTeacher, model: nn.Module, inputs: Tensor = MAPS) -> tuple[Compressor, nn.Module]:
    with torch.no_grad():
        model(inputs)  # sizes what is lazy
    compressor = Compressor([method])
    return compressor, compressor.attach(model, inputs[:2])


def terms_of(compressor: Compressor, model: nn.Module, inputs: Tensor = MAPS) -> dict[str, Tensor]:
    outputs = model(inputs)
    return compressor.loss(compressor.step((inputs, TARGETS), outputs, F.cross_entropy(outputs, TARGETS), model))


def test_the_terms_are_those_of_the_paper() -> None:
    # Linear layers all along, so that each classifier can be written down.
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(6, 5)
    method = OwnTeacher(["1", "0"], deepest="3", weight=0.4, hint=0.2, temperature=2.0)
    compressor, model_ = made(method, model, x)
    found = terms_of(compressor, model_, x)
    labels = soft = hints = 0.0
    with torch.no_grad():
        p = softmax(model(x).double().numpy() / 2.0, axis=1)
        for classifier, shallow in zip(method.classifiers, (model[:2](x), model[:1](x)), strict=True):
            state = classifier.state_dict()
            features = F.linear(shallow, state["features.weight"], state["features.bias"])
            logits = F.linear(features, state["logits.weight"], state["logits.bias"])
            labels += float(F.cross_entropy(logits, TARGETS))
            soft += float(4.0 * rel_entr(p, softmax(logits.double().numpy() / 2.0, axis=1)).sum(1).mean())
            hints += float((features - model[:4](x)).square().sum() / (6 * 6))
    expected = {"own_labels": 0.6 * labels, "own_outputs": 0.4 * soft, "own_features": 0.2 * hints}
    assert {name: term.item() for name, term in found.items()} == pytest.approx(expected, rel=1e-4)


def test_each_head_teaches_a_classifier_of_its_own() -> None:
    heads = {"b": nn.Linear(4, 2), "a": nn.Linear(4, 3)}  # targets are in the order of the names, outputs are not
    model = SharedTrunk(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), heads)
    x, targets = torch.randn(6, 5), torch.stack([TARGETS, TARGETS % 2], dim=1)
    compressor = Compressor([OwnTeacher(["trunk.0"], weight=0.4, temperature=2.0)])
    compressor.attach(model, x[:2])
    outputs = model(x)
    found = compressor.loss(compressor.step((x, targets), outputs, torch.ones(()), model))
    with torch.no_grad():
        _, logits = compressor.methods[0].classifiers[0](model.trunk[0](x))  # type: ignore[index, operator]
        apart = [
            rel_entr(*(softmax(z.double().numpy() / 2.0, axis=1) for z in (outputs[head], logits[head]))).sum(1).mean()
            for head in "ab"
        ]
    assert found["own_outputs"].item() == pytest.approx(0.4 * 4.0 * sum(apart), rel=1e-4)
    labels = sum(F.cross_entropy(logits[head], targets[:, place]).item() for place, head in enumerate("ab"))
    assert found["own_labels"].item() == pytest.approx(0.6 * labels, rel=1e-5)


def test_maps_go_through_a_bottleneck_as_wide_as_the_deepest() -> None:
    method = OwnTeacher(["1"], deepest="3")
    compressor, model = made(method, net())
    shapes = [tuple(p.shape) for p in method.param_groups()[0]["params"] if p.dim() > 1]
    assert shapes == [(3, 4, 1, 1), (3, 3, 3, 3), (12, 3, 1, 1), (3, 12)]
    assert terms_of(compressor, model).keys() == {"own_labels", "own_outputs", "own_features"}
    alone = OwnTeacher(["1"])
    compressor, model = made(alone, net())
    assert [tuple(p.shape) for p in alone.parameters() if p.dim() == 2] == [(3, 4)]
    assert terms_of(compressor, model).keys() == {"own_labels", "own_outputs"}


def test_the_gradient_reaches_what_is_below_the_taps_and_nothing_above() -> None:
    method = OwnTeacher(["1"], deepest="3")
    compressor, model = made(method, net())
    for name, term in terms_of(compressor, model).items():
        model.zero_grad()
        torch.autograd.backward(term, retain_graph=True)
        reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == {"0.weight", "0.bias"}, name


def test_the_first_layer_and_the_classifiers_learn() -> None:
    method = OwnTeacher(["1"], deepest="3", weight=Linear(last=0.5))
    compressor, model = made(method, net())
    before = [p.clone() for p in (*model.parameters(), *method.parameters())]
    optimizer = torch.optim.SGD([{"params": list(model.parameters())}, *compressor.param_groups()], lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        terms = terms_of(compressor, model)
        torch.autograd.backward(sum(terms.values(), torch.zeros(())))
        optimizer.step()
        compressor.update(model)
        losses.append(float(terms["own_labels"].detach()))
    assert losses[-1] < 0.7 * losses[0]
    moved = [not torch.equal(a, b) for a, b in zip(before, (*model.parameters(), *method.parameters()), strict=True)]
    assert moved == [True, True, *[False] * 4, *[True] * (len(moved) - 6)]


def test_nothing_of_it_is_deployed_and_attaching_draws_on_no_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(3))
    compressor, model_ = made(OwnTeacher(["1"]), model)
    tracked = int(model.state_dict()["1.num_batches_tracked"])
    assert tracked == 1, "of sizing, not of attaching"
    terms_of(compressor, model_)
    compact = compressor.finalize(model_, MAPS[:2])
    assert compact.model.state_dict().keys() == compact.stored.keys() == model.state_dict().keys()
    assert not any(module._forward_hooks for module in compact.model.modules())


def test_no_effect_is_an_error() -> None:
    compressor, model = made(OwnTeacher(["1"]), net())
    model.requires_grad_(False)
    terms_of(compressor, model)
    with pytest.raises(
        NoEffectError, match="OwnTeacher had no effect by step 1: no gradient goes from 1 into the model"
    ):
        compressor.update(model)
    compressor, model = made(OwnTeacher(["1"], task_loss=lambda outputs, _: outputs.sum() * 0, weight=0.0), net())
    terms_of(compressor, model)
    with pytest.raises(NoEffectError, match="by step 1: own_labels is exactly zero: are outputs or features constant"):
        compressor.update(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": []}, r"taps is a list of modules' names, as \[layer1, layer2\]; got \[\]"),
        ({"taps": "1"}, "got '1'"),
        ({"weight": 1.5}, "weight is a share in .*; got 1.5, 0.03, 3"),
        ({"hint": -1.0}, "hint 0 or more"),
        ({"temperature": Linear(first=4.0, last=0.0)}, "temperature positive"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OwnTeacher(**{"taps": ["1"], **options})


class WithIdle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.idle = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.body(inputs)
        return found


def test_taps_that_cannot_be_used() -> None:
    with pytest.raises(ValueError, match="no module 'bode' to tap; did you mean 'body'"):
        OwnTeacher(["bode"]).attach(WithIdle(), torch.ones(2, 5))
    with pytest.raises(ValueError, match="in a forward pass; idle gave NoneType"):
        OwnTeacher(["idle"]).attach(WithIdle(), torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"body gave \(2, 7, 3\)"):
        OwnTeacher(["body"]).attach(nn.Sequential(WithIdle(), nn.Flatten()).get_submodule("0"), torch.ones(2, 7, 5))
