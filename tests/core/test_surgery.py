import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_compress.core import surgery
from lightning_compress.core.tap import Taps


class Double(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Gate(nn.Module):
    gate: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gate", torch.tensor([[1.0, 0.0, 1.0]]))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.gate


def parametrized() -> Any:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    parametrize.register_parametrization(net[0], "weight", Gate())
    parametrize.register_parametrization(net[0], "weight", Double())
    parametrize.register_parametrization(net[0], "bias", Double())
    parametrize.register_parametrization(net[3], "weight", Double())
    surgery.put_on_input(net[3], nn.Hardtanh(0.0, 0.5))
    return net.eval()


def fit(net: Any, optimizer: torch.optim.Optimizer) -> float:
    loss = (net(torch.ones(5, 3)) - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_plain_has_the_values_and_no_trace_of_parametrizations() -> None:
    net = parametrized()
    twin: Any = surgery.plain(net)
    assert not any(parametrize.is_parametrized(module) for module in twin.modules())
    assert [type(module) for module in twin] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert set(twin.state_dict()) == set(
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).state_dict()
    )
    for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
        layer, _, attribute = name.partition(".")
        assert torch.equal(twin.state_dict()[name], getattr(net.get_submodule(layer), attribute))
    surgery.take_from_input(net[3])
    x = torch.randn(4, 3)
    assert torch.equal(twin(x), net(x))


def test_plain_leaves_the_original_trainable_however_often() -> None:
    torch.manual_seed(0)
    net, reference = parametrized(), parametrized()
    reference.load_state_dict(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    other = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    twins: list[Any] = []
    for _ in range(3):
        twins += [surgery.plain(net), surgery.plain(net)]
        assert fit(net, optimizer) == fit(reference, other)  # a copy changes nothing, bit for bit
        assert [id(p) for p in net.parameters()] == held
    assert parametrize.is_parametrized(net[0], "weight")
    assert not torch.equal(twins[0][0].weight, twins[-1][0].weight)
    assert torch.equal(twins[-1][0].weight, twins[-2][0].weight)
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_the_copy_leaves_the_original_alone() -> None:
    net = parametrized()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    twin: Any = surgery.plain(net)
    fit(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_plain_keeps_what_is_frozen_frozen() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].weight.requires_grad_(False)
    for layer in net:
        parametrize.register_parametrization(layer, "weight", Double())
    twin: Any = surgery.plain(net)
    assert [twin[0].weight.requires_grad, twin[1].weight.requires_grad] == [False, True]


def test_a_masked_negative_weight_becomes_a_plain_zero() -> None:
    layer = nn.Linear(3, 1)
    nn.init.constant_(layer.weight, -1.0)
    parametrize.register_parametrization(layer, "weight", Gate())
    assert torch.signbit(layer.weight).all()
    assert torch.signbit(surgery.plain(layer).get_parameter("weight")).tolist() == [[True, False, True]]


def test_the_input_child_is_gone_from_the_copy_only() -> None:
    net = parametrized()
    twin: Any = surgery.plain(net)
    assert not list(twin[3].children())
    assert not twin[3]._forward_pre_hooks
    assert [name for name, _ in net[3].named_children()] == ["parametrizations", surgery.INPUT_CHILD]
    x = torch.full((1, 4), 9.0)
    torch.testing.assert_close(net[3](x), 0.5 * torch.ones(1, 4) @ net[3].weight.T + net[3].bias)
    torch.testing.assert_close(twin[3](x), x @ net[3].weight.T + net[3].bias)


def test_put_twice_replaces_and_take_removes() -> None:
    layer: Any = nn.Linear(2, 2)
    plain = layer(torch.ones(1, 2))
    surgery.put_on_input(layer, Double())
    surgery.put_on_input(layer, Double())
    torch.testing.assert_close(layer(torch.ones(1, 2)), layer.weight.sum(1) * 2 + layer.bias[None])
    surgery.take_from_input(layer)
    surgery.take_from_input(layer)
    assert torch.equal(layer(torch.ones(1, 2)), plain)
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_own_names_are_those_of_the_plain_copy() -> None:
    net = parametrized()
    names = surgery.own_names(net)
    assert set(names) == set(surgery.plain(net).state_dict())
    assert names["0.weight"] == (net[0], "weight")
    bare = nn.Linear(2, 2)
    parametrize.register_parametrization(bare, "weight", Double())
    assert set(surgery.own_names(bare)) == {"weight", "bias"}


def test_own_names_leave_out_buffers_that_are_not_saved() -> None:
    net = nn.Linear(2, 2, bias=False)
    net.register_buffer("scratch", torch.zeros(1), persistent=False)
    net.register_buffer("kept", torch.zeros(1))
    assert list(surgery.own_names(net)) == ["weight", "kept"]


def test_tied_tensors_are_listed_once() -> None:
    net: Any = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    assert list(surgery.own_names(net)) == ["a.weight", "a.bias", "b.bias"]


def test_a_parametrized_tie_is_a_tensor_of_its_own() -> None:
    net: Any = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    parametrize.register_parametrization(net["b"], "weight", Double())
    assert set(surgery.own_names(net)) == set(surgery.plain(net).state_dict())


def test_replace() -> None:
    net: Any = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    new = nn.Tanh()
    assert surgery.replace(net, "0.1", new) is net
    assert net.get_submodule("0.1") is new
    assert surgery.replace(net, "", new) is new


def test_evaluating_restores_each_module() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1).eval(), nn.Dropout())
    try:
        with surgery.evaluating(net):
            assert not any(module.training for module in net.modules())
            raise KeyError
    except KeyError:
        pass
    assert [module.training for module in net.modules()] == [True, True, False, True]


def test_plain_copies_are_not_tapped() -> None:
    net = parametrized()
    Taps(net, ["0"])
    assert not surgery.plain(net).get_submodule("0")._forward_hooks
    assert net[0]._forward_hooks


def test_masks_and_codebooks_are_found_in_the_stack_and_what_lies_below_a_step() -> None:
    class Mask(Double):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(1))

    class Book(Double):
        is_codebook = True

    layer, mask, book, last = nn.Linear(3, 2), Mask(), Book(), Double()
    latent = layer.weight.detach().clone()
    assert surgery.masks_on(layer, "weight") == []
    assert not surgery.codebook_on(layer, "weight")
    for step in (mask, last, mask):
        parametrize.register_parametrization(layer, "weight", step)
    assert surgery.masks_on(layer, "weight") == [mask]
    assert surgery.masks_on(layer, "bias") == []
    assert not surgery.codebook_on(layer, "weight")
    assert torch.equal(surgery.below(layer, "weight", mask), latent)
    assert torch.equal(surgery.below(layer, "weight", last), 2 * latent)
    parametrize.register_parametrization(layer, "weight", book)
    assert surgery.codebook_on(layer, "weight")
    assert torch.equal(surgery.below(layer, "weight", book), 8 * latent)


def test_a_child_on_an_output_is_part_of_the_model_until_it_is_taken_off() -> None:
    net = nn.Sequential(nn.Identity(), nn.Linear(2, 2))
    inputs = torch.randn(9, 2)
    before = net(inputs)
    surgery.put_on_output(net[1], Double())
    surgery.put_on_output(net[1], Double())
    assert torch.equal(net(inputs), 2 * before), "the second replaces the first"
    assert torch.equal(copy.deepcopy(net)(inputs), 2 * before)
    assert list(surgery.own_names(net)) == ["1.weight", "1.bias"]
    assert torch.equal(surgery.plain(net)(inputs), before)
    surgery.take_from_output(net[1])
    surgery.take_from_output(net[1])
    assert torch.equal(net(inputs), before)


def test_a_plain_copy_draws_nothing() -> None:
    class Noise(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + torch.rand_like(weight) if self.training else 2.0 * weight

    layer: Any = nn.Sequential(nn.Linear(2, 2))
    parametrize.register_parametrization(layer[0], "weight", Noise())
    state = torch.get_rng_state()
    twin: Any = surgery.plain(layer)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(twin[0].weight, 2.0 * layer[0].parametrizations.weight.original)
    assert twin.training
    assert twin[0].training
