import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core import shrunk
from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.method import Method, Step
from lightning_compress.distill.ensemble import Ensemble
from lightning_compress.distill.reuse import ReuseClassifier
from lightning_compress.distill.teacher import Teacher
from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.prune.method import Prune

TARGETS = torch.tensor([0, 2, 1, 1])
MAPS = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def conv(channels: int, stride: int = 1, end: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, stride, padding=1),
        end(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 3),
    )


def made(*methods: Method, model: nn.Module, inputs: Tensor = MAPS) -> tuple[Compressor, Any]:
    compressor = Compressor(methods)
    return compressor, compressor.attach(model, inputs[:2])


def step_of(compressor: Compressor, model: nn.Module, inputs: Tensor = MAPS, targets: Tensor = TARGETS) -> Step:
    outputs = model(inputs)
    return compressor.step((inputs, targets), outputs, F.cross_entropy(outputs, targets), model)


def test_the_loss_of_a_linear_projector_by_hand() -> None:
    teacher = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    student = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2))
    with torch.no_grad():
        teacher.get_parameter("0.weight").copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        student.get_parameter("0.weight").copy_(torch.tensor([[1.0, 1.0]]))
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    compressor, model = made(ReuseClassifier(teacher, weight=2.0), model=student, inputs=x)
    with torch.no_grad():
        model[1].projector.weight.copy_(torch.tensor([[1.0], [2.0]]))
        model[1].projector.bias.copy_(torch.tensor([0.0, -1.0]))
    # The teacher reads [1, 0] and [3, 1]; the student has 3 and 2, projected [3, 5] and [2, 3].
    found = compressor.loss(step_of(compressor, model, x, torch.tensor([0, 1])))
    assert found["reuse"].item() == pytest.approx(2.0 * (2**2 + 5**2 + 1**2 + 2**2) / 4)
    assert compressor.task_weight() == 0.0
    torch.testing.assert_close(model(x), teacher[2](torch.tensor([[3.0, 5.0], [2.0, 3.0]])))


@pytest.mark.parametrize(("ours", "theirs"), [(1, 2), (2, 1)], ids=["student's is larger", "teacher's is larger"])
def test_the_loss_of_maps_is_that_of_the_paper(ours: int, theirs: int) -> None:
    teacher = conv(6, theirs)
    compressor, model = made(ReuseClassifier(teacher, features="1"), model=conv(4, ours))
    found = compressor.loss(step_of(compressor, model))["reuse"].item()
    projector = model[1].projector
    assert [module.out_channels for module in projector if isinstance(module, nn.Conv2d)] == [3, 3, 6]

    def halved(maps: Tensor) -> Any:
        values = maps.detach().double().numpy()
        if values.shape[2] == 8:
            values = values.reshape(4, -1, 4, 2, 4, 2).mean((3, 5))
        return values

    state = projector.state_dict()
    first = next(number for number, module in enumerate(projector) if isinstance(module, nn.Conv2d))
    maps = halved(F.relu(model[0](MAPS)))
    for number, padding in ((first, 0), (first + 3, 1), (first + 6, 0)):
        kernel = state[f"{number}.weight"].double().numpy()
        wide = np.pad(maps, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
        windows = np.lib.stride_tricks.sliding_window_view(wide, kernel.shape[2:], (2, 3))
        maps = np.einsum("nchwij,ocij->nohw", windows, kernel)
        # Batch norm as it begins, and ReLU.
        mean, variance = (getattr(maps, what)((0, 2, 3), keepdims=True) for what in ("mean", "var"))
        maps = np.maximum((maps - mean) / np.sqrt(variance + 1e-5), 0.0)
    wanted = halved(F.relu(teacher[0](MAPS)))
    assert found == pytest.approx(float(((maps - wanted) ** 2).mean()), rel=1e-4)


@pytest.mark.parametrize("features", [None, "1"])
def test_body_and_projector_learn_and_the_classifier_is_the_teachers(features: str | None) -> None:
    teacher, student = conv(6), conv(4)
    compressor, model = made(ReuseClassifier(teacher, features=features), model=student)
    before = {name: value.clone() for name, value in model.named_parameters()}
    # Of all that is there, as if somebody's optimizer had it all, with weight decay.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, weight_decay=0.1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        step = step_of(compressor, model)
        (term,) = compressor.loss(step).values()
        torch.autograd.backward(term + compressor.task_weight() * step.task_loss)
        optimizer.step()
        compressor.update(model)
        losses.append(term.item())
    assert losses[-1] < 0.8 * losses[0]
    name = "4.classifier" if features is None else "4"
    still = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert still == {f"{name}.weight", f"{name}.bias"}
    for ours, theirs in zip(model.get_submodule(name).parameters(), teacher[4].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
        assert not ours.requires_grad


@pytest.mark.parametrize(("features", "layer"), [(None, None), ("layer3", "fc")])
def test_the_deployed_student_is_rebuilt_of_the_base_and_has_no_classifier_of_its_own(
    features: str | None, layer: str | None, tmp_path: Path
) -> None:
    teacher, base = ResNetCIFAR(14, in_channels=1, width=0.5), ResNetCIFAR(8, in_channels=1, width=0.25)
    method = ReuseClassifier(teacher, features=features, layer=layer)
    compressor, model = made(method, model=copy.deepcopy(base))
    compressor.loss(step_of(compressor, model))  # moves the statistics of batch norms
    compact = compressor.finalize(model, MAPS[:2])
    shrunk.save(compact, tmp_path)
    back = shrunk.load(tmp_path, copy.deepcopy(base))
    torch.testing.assert_close(back(MAPS), model.eval()(MAPS), rtol=0, atol=0)
    kept = compact.model.state_dict()
    assert compact.stored.keys() == kept.keys()
    assert ("fc.weight" in kept) == (features is not None)
    assert [value.shape for value in kept.values() if value.shape[:1] == (10,)] == [(10, 32), (10,)]
    assert not [value for value in kept.values() if torch.equal(value, base.fc.bias)]


def test_the_end_has_no_relu_where_the_teachers_features_are_negative_too() -> None:
    _, model = made(ReuseClassifier(conv(6, end=nn.Tanh), features="1"), model=conv(4))
    assert isinstance(model[1].projector[-1], nn.BatchNorm2d)


@pytest.mark.parametrize("features", [None, "1"])
def test_a_later_phase_goes_on_with_the_projector(features: str | None) -> None:
    teacher, student = conv(6), conv(4)
    first = ReuseClassifier(teacher, features=features)
    compressor, model = made(first, model=student)
    phase = compressor.finalize(model, MAPS[:2]).model.train().requires_grad_(True)
    classifier = phase.get_submodule("4.classifier" if features is None else "4")
    with torch.no_grad():
        classifier.weight.add_(1.0)  # type: ignore[operator]
    second = ReuseClassifier(teacher, features=features, layer="4")
    compressor, model = made(second, model=phase)
    assert second.taps == first.taps
    assert model.state_dict().keys() == phase.state_dict().keys()
    assert compressor.finalize(model, MAPS[:2]).edits == []
    assert torch.equal(classifier.weight, teacher[4].weight)  # type: ignore[arg-type]
    assert compressor.loss(step_of(compressor, model))["reuse"] > 0


def test_a_projector_that_lost_channels_is_no_projector_for_a_later_phase() -> None:
    teacher = conv(6)
    compressor, model = made(
        ReuseClassifier(teacher, features="1"), Prune(0.5, pattern="channel", every=1), model=conv(4)
    )
    for _ in range(3):
        compressor.loss(step_of(compressor, model))
        compressor.update(model)
    compressor.steps = compressor.horizon
    compressor.update(model)
    phase = compressor.finalize(model, MAPS[:2]).model
    with pytest.raises(ValueError, match=r"weight of shape \[3, 6\], the one the student has by now \[3, 3\]"):
        ReuseClassifier(teacher, features="1").attach(phase, MAPS[:2])


def test_no_effect_is_an_error() -> None:
    compressor, model = made(ReuseClassifier(conv(6)), model=conv(4))
    model.requires_grad_(False)
    compressor.loss(step_of(compressor, model))
    with pytest.raises(
        NoEffectError, match="ReuseClassifier had no effect by step 1: the term 'reuse' carries no grad"
    ):
        compressor.update(model)


class Inner(nn.Module):
    """A second linear layer behind the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.hidden, self.fc = nn.Sequential(conv(6)[:4]), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.fc(self.hidden(self.body(inputs)))
        return found


@pytest.mark.parametrize(
    ("options", "teacher", "message"),
    [
        ({"weight": -1.0}, conv(6), "weight is not negative, reduction counts from 1 up; got -1 to -1"),
        ({"reduction": 0}, conv(6), "reduction=0"),
        ({"teacher_features": "1"}, conv(6), "teacher_features='1' needs features, the student's; write both"),
        ({}, Teacher(conv(6), cache=True), "write teacher.cache=false"),
        ({"layer": "5"}, conv(6), "no module '5' to tap; did you mean"),
        ({"layer": "0"}, conv(6), "expected of the student one nn.Linear that .*, called '0'; of 4 there is none"),
        (
            {"teacher_layer": "0"},
            conv(6),
            "expected of the teacher one nn.Linear that .*, called '0'; of 4 there is no",
        ),
        ({}, Ensemble([conv(6), conv(6)]), "expected of the teacher one nn.Linear .* of .*4 there is none"),
        (
            {},
            nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
            "cannot reuse a classifier of 4 classes in the place of .4., Linear",
        ),
        ({"features": "3"}, conv(6), r"features are maps .* got \[2, 4\] and \[2, 6\]; leave features away"),
        ({"features": "0", "teacher_features": "1"}, conv(6), "cannot put a projector behind '0', a Conv2d"),
        ({"features": "1", "teacher_features": "body.0.1"}, Inner(), "given the teacher's features.*outputs differ"),
    ],
)
def test_what_cannot_be_reused(options: dict[str, Any], teacher: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReuseClassifier(teacher, **options).attach(conv(4), MAPS[:2])


def test_a_student_with_layers_behind_the_maps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no layer with weights, and the classifier.* cannot be multiplied"):
        ReuseClassifier(conv(8), features="body.0.1", teacher_features="1").attach(Inner(), MAPS[:2])
