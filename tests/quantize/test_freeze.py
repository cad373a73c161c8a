import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.method import Method
from lightning_compress.core.schedule import Steps
from lightning_compress.quantize.freeze import Freeze, divergence
from lightning_compress.quantize.method import Quantize
from lightning_compress.share.method import Share

STEPS = 12


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def batch(number: int = 0) -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(number))


class Run:
    """A model, its methods and an optimizer whose steps move everything, gradient or not."""

    def __init__(self, *methods: Method, model: Any = None) -> None:
        self.model: Any = model or net()
        self.call: Any = self.model
        self.compressor = Compressor(methods)
        self.compressor.attach(self.model, batch())
        self.compressor.prepare(self.model, [(batch(), None)])
        self.compressor.horizon = STEPS
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)

    def step(self, move: Callable[[], None] | None = None) -> dict[str, float]:
        """One step of training, with `move` in the optimizer's place."""
        number = self.compressor.steps
        self.model.train()
        outputs = self.call(batch(number))
        loss = outputs.square().mean()
        self.compressor.loss(self.compressor.step((batch(number), None), outputs, loss, self.model))
        self.optimizer.zero_grad()
        loss.backward()
        (move or self.optimizer.step)()
        return self.compressor.update(self.model, [self.optimizer])

    def state(self, *layers: int) -> dict[str, Tensor]:
        names = tuple(f"{layer}." for layer in layers)
        found = {name: tensor for name, tensor in self.model.named_parameters() if name.startswith(names)}
        return {name: tensor.detach().clone() for name, tensor in found.items() if "input_quantizer" not in name}


# ------------------------------------------------------------------------------------------------- the metric


def test_the_metric_by_hand() -> None:
    # Means 2 and 3, variances 4 and 1.
    after, before = torch.tensor([[0.0], [4.0]]), torch.tensor([[2.0], [4.0]])
    # log(1/2) + (4 + (2 - 3)^2) / (2 * 1) - 1/2 = 1.3069, and none counts for more than 1.
    assert divergence(after, before) == 1.0
    # The other way round: log(2) + (1 + 1) / (2 * 4) - 1/2.
    assert divergence(before, after) == pytest.approx(np.log(2.0) + 2.0 / 8.0 - 0.5)
    # Two channels: the mean; one that did not move has none.
    both = torch.cat([before, before], dim=1), torch.cat([after, before], dim=1)
    assert divergence(*both) == pytest.approx((np.log(2.0) - 0.25) / 2)


def test_the_metric_is_the_divergence_of_gaussians() -> None:
    after = torch.randn(500, 6).double() * torch.linspace(0.8, 1.2, 6) + torch.linspace(-0.2, 0.2, 6)
    before = torch.randn(500, 6).double()
    gaussians = [Normal(x.mean(0), x.std(0, correction=0)) for x in (after, before)]
    assert divergence(after, before) == pytest.approx(float(kl_divergence(*gaussians).mean()), rel=1e-12)


def test_dead_channels_say_nothing() -> None:
    x = torch.randn(20, 2)
    dead = torch.cat([x, torch.zeros(20, 1)], dim=1)
    assert divergence(dead, dead.roll(1, dims=0) * torch.tensor([1.1, 1.1, 0.0])) == pytest.approx(
        divergence(x, x * 1.1), rel=1e-6
    )
    assert divergence(torch.zeros(5, 2), torch.ones(5, 2)) == 0.0
    assert divergence(torch.ones(1, 2), torch.zeros(1, 2)) == 0.0  # one number has no spread


def test_only_a_weight_that_takes_another_code_is_felt() -> None:
    """Codes lie 0.1 apart: 0.21 -> 0.24 stays at the second, 0.24 -> 0.26 goes on to the third."""
    model: Any = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 1))
    nn.init.constant_(model[1].weight, 0.7)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.7, 0.21, 0.0, 0.0]]))
    freeze = Freeze(stages=2, start=0.0, every=1)
    run = Run(freeze, Quantize(4, None), model=model)
    latent = run.model[0].parametrizations.weight.original
    run.step(lambda: latent.data[0, 1].fill_(0.24))
    assert freeze._felt == {"0": 0.0, "1": 0.0}
    run.step(lambda: latent.data[0, 1].fill_(0.26))
    x = batch(1).double().numpy()
    after, before = x @ [0.7, 0.3, 0.0, 0.0], x @ [0.7, 0.2, 0.0, 0.0]
    var, old = after.var(), before.var()
    wanted = np.log(np.sqrt(old / var)) + (var + (after.mean() - before.mean()) ** 2) / (2 * old) - 0.5
    assert freeze._felt["0"] == pytest.approx(wanted, rel=1e-4)
    assert freeze._felt["1"] == 0.0


def test_measuring_leaves_training_as_it_is() -> None:
    runs = [Run(Freeze(every=every, start=0.2), Quantize(3, 4, weights="lsq")) for every in (1, 100)]
    for run in runs:
        torch.manual_seed(1)
        for _ in range(5):
            run.step()
        assert run.model[3].training
    first, second = (run.model.state_dict() for run in runs)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# ------------------------------------------------------------------------------------------------- freezing


def test_shares_are_frozen_stage_by_stage_from_the_most_disturbed_on() -> None:
    freeze = Freeze(stages=3, start=0.25, every=1)
    run = Run(freeze, Quantize(3, None))
    logs = []
    for number in range(1, STEPS + 1):
        logs.append(run.step())
        if number == 5:  # stages begin at 3, 6 and 9 steps of 12
            assert freeze._felt.keys() == {"0", "4", "6"}
            freeze._felt = {"0": 0.1, "4": 50.0, "6": 40.0}
    assert freeze._frozen == ["4", "6"]
    assert [log.get("freeze/layers") for log in logs] == [None] * 5 + [1.0, None, None, 2.0] + [None] * 3


def test_frozen_layers_stay_whatever_the_optimizer_does() -> None:
    freeze = Freeze(stages=3, start=0.0, every=1)
    run = Run(freeze, Quantize(3, 4, weights="lsq", activations="lsq"))
    for _ in range(4):
        run.step()
    (name,) = freeze._frozen
    still, others = int(name), [layer for layer in (0, 4, 6) if str(layer) != name]
    before, moving, weight = run.state(still), run.state(*others, 1), run.model[still].weight.detach().clone()
    assert {key.rpartition(".")[2] for key in before} == {"original", "scale", "bias"}
    norm, step = run.model[1].running_mean.clone(), run.model[still].input_quantizer.scale.detach().clone()
    run.step()
    run.step()
    assert all(torch.equal(tensor, before[key]) for key, tensor in run.state(still).items())
    assert torch.equal(run.model[still].weight, weight)
    assert all(not torch.equal(tensor, moving[key]) for key, tensor in run.state(*others, 1).items())
    assert not torch.equal(run.model[1].running_mean, norm)
    assert not torch.equal(run.model[still].input_quantizer.scale, step)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by the compiler itself
def test_a_compiled_model_is_measured_and_frozen_without_another_graph() -> None:
    plain, compiled = (Run(Freeze(start=0.0, every=1), Quantize(3, 4, weights="lsq")) for _ in range(2))
    torch._dynamo.reset()
    compiled.call = torch.compile(compiled.model, backend="aot_eager", fullgraph=True)
    for run in (plain, compiled):
        run.model[3].p = 0.0
        run.step()
        with torch.compiler.set_stance("fail_on_recompile" if run is compiled else "default"):
            for _ in range(9):
                run.step()
    first, second = (run.compressor.methods[0].get_extra_state() for run in (plain, compiled))
    assert first["frozen"] == second["frozen"]
    assert len(first["frozen"]) == 2
    assert first["felt"] == pytest.approx(second["felt"], rel=1e-3, abs=1e-9)


def test_bits_that_change_take_the_learned_step_of_a_frozen_layer_along() -> None:
    freeze = Freeze(stages=2, start=0.0, every=1)
    run = Run(freeze, Quantize(Steps(values=[8, 4], at=[0.7]), None, weights="lsq"))
    for _ in range(7):
        run.step()
    (name,) = freeze._frozen
    scale = run.model[int(name)].parametrizations.weight[0].scale
    before = scale.detach().clone()
    for _ in range(3):
        run.step()
    torch.testing.assert_close(scale.detach(), before * (127 / 7) ** 0.5)


def test_centroids_that_a_free_layer_has_too_go_on() -> None:
    freeze = Freeze(stages=3, start=0.0, every=1)
    run = Run(Share(bits=2, scope="global"), freeze, Quantize(4, None))
    for _ in range(4):
        run.step()
    (name,) = freeze._frozen
    layer = run.model[int(name)]
    centroids, bias = layer.parametrizations.weight[0].centroids, layer.bias
    before = centroids.detach().clone(), bias.detach().clone()
    run.step()
    assert not torch.equal(centroids, before[0])
    assert torch.equal(bias, before[1])


def test_its_state_goes_through_a_checkpoint() -> None:
    def methods() -> Sequence[Method]:
        return Freeze(stages=3, start=0.0, every=2), Quantize(3, 4, weights="lsq")

    run, again = Run(*methods()), Run(*methods())
    for _ in range(5):
        run.step()
    again.model.load_state_dict(run.model.state_dict())
    again.compressor.load_state_dict(run.compressor.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    for one in (run, again):
        torch.manual_seed(5)
        for _ in range(6):
            one.step()
    first, second = (one.compressor.methods[0].get_extra_state() for one in (run, again))
    assert first == second
    assert len(first["frozen"]) == 2
    state = run.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())


# --------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("options", [{"stages": 1}, {"every": 0}, {"start": 1.0}, {"start": -0.1}])
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Freeze: stages are at least 2, every counts steps from 1 up, start lies in"):
        Freeze(**options)


def test_it_goes_before_what_quantizes() -> None:
    with pytest.raises(ValueError, match=r"quantized already; put it before Quantize: \[Freeze, Quantize\]"):
        Run(Quantize(), Freeze())


@pytest.mark.parametrize(
    ("methods", "number"), [([], 0), ([partial(Quantize, None, 8)], 0), ([partial(Quantize, select="0")], 1)]
)
def test_there_has_to_be_something_to_freeze(methods: list[Callable[[], Method]], number: int) -> None:
    with pytest.raises(ValueError, match=rf"expected 2 layers with quantized weights or more.*there are {number}: put"):
        Run(Freeze(), *[make() for make in methods])


@pytest.mark.parametrize(("every", "start"), [(100, 0.0), (1, 0.9)])
def test_a_run_that_measures_nothing_is_an_error(every: int, start: float) -> None:
    run = Run(Freeze(start=0.0, every=every), Quantize(start=start))
    for _ in range(7):
        run.step()
    with pytest.raises(NoEffectError, match="Freeze had no effect by step 8: no layer was measured"):
        run.step()
