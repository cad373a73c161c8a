"""The graph against torch-pruning's own, where that sees all, and against hand-worked labels where it does not."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.models.resnet_cifar import ResNetCIFAR
from lightning_compress.prune import graph
from lightning_compress.prune.groups import groups
from tests.prune import graphs, removing

X = torch.randn(2, 3, 8, 8)


def together(model: nn.Module) -> set[frozenset[tuple[str, str]]]:
    """For each group: the sides that go together, as torch-pruning's dependency graph has them."""
    names = {module: name for name, module in model.named_modules()}
    found = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = tp.DependencyGraph().build_dependency(model, example_inputs=X)
        for group in built.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear, nn.ConvTranspose2d]):
            sides = set()
            for item in group:
                handler = item.dep.handler.__name__
                name = names.get(item.dep.target.module)
                if name is not None:
                    sides.add((name, "in" if handler.endswith("in_channels") else "out"))
            found.add(frozenset(sides))
    return found


@pytest.mark.parametrize(
    "build",
    [lambda: ResNetCIFAR(8, shortcut="B", width=0.5), graphs.Dense, graphs.Excited],
    ids=["residual", "dense", "se"],
)
def test_the_groups_are_those_of_torch_pruning(build: Callable[[], nn.Module]) -> None:
    model = build().eval()
    ours = groups(model, X, removing.layers(model))
    theirs = {sides for sides in together(model) if any(side == "in" for _, side in sides)}
    # It also lists depthwise convs as readers of themselves.
    depthwise = {(name, "in") for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert {frozenset((m.layer, m.side) for m in group.members) for group in ours.values()} == {
        sides - depthwise for sides in theirs
    }


class Between(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.write = nn.Conv2d(3, 4, 1)
        self.change = change
        self.read = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.read(self.change(self.write(x)))
        return out


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x.flip(1), [4, 3, 2, 1]),
        (lambda x: x.roll(1, 1), [4, 1, 2, 3]),
        (lambda x: x[:, [2, 0]], [3, 1]),
        (lambda x: x[:, ::2], [1, 3]),
        (lambda x: torch.cat([x, x[:, :1]], 1), [1, 2, 3, 4, 1]),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), [0, 1, 2, 3, 4, 0, 0]),
        (lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2), [1, 1, 2, 2]),  # 1 with 3, 2 with 4
        (lambda x: F.channel_shuffle(x, 2), [1, 1, 2, 2]),
        (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), [1, 2, 1, 2]),
        (lambda x: F.pixel_shuffle(x, 2), [1]),
        (lambda x: F.max_pool2d(F.relu_(x), 2), [1, 2, 3, 4]),
        (lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), [1, 2, 3, 4]),
        (lambda x: x + x.roll(2, 1), [1, 2, 1, 2]),
        (lambda x: x * torch.arange(4.0).view(4, 1, 1), [0, 0, 0, 0]),  # who would cut the constant
        (lambda x: x * torch.ones(8, 8), [1, 2, 3, 4]),
        (lambda x: x * x[:, :1], [0, 2, 3, 4]),  # all need the first
        (lambda x: x.softmax(1), [0, 0, 0, 0]),
        (lambda x: x.flatten(2).softmax(2).view(x.shape), [1, 2, 3, 4]),
        (lambda x: x.cumsum(1), [0, 0, 0, 0]),
        (lambda x: torch.zeros_like(x).copy_(x), [0, 0, 0, 0]),
        (lambda x: torch.bmm(x.flatten(2), x.flatten(2).transpose(1, 2))[..., None], [1, 1, 1, 1]),
    ],
)
def test_labels_by_hand(change: Callable[[Tensor], Tensor], expected: list[int]) -> None:
    model = Between(change, len(expected))
    assert graph.trace(model, X).places["read", "in"].tolist() == expected


def test_a_batch_of_one_splits_alike() -> None:
    model = Between(lambda x: x.view(1, 2, 2, 8, 8).transpose(1, 2).reshape(1, 4, 8, 8), 4)
    assert graph.trace(model, X[:1]).places["read", "in"].tolist() == [1, 1, 2, 2]


def test_outputs_and_inputs_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1))
    places = graph.trace(model, X).places
    assert places["0", "in"].tolist() == [0, 0, 0]
    assert places["1", "out"].tolist() == [0, 0, 0, 0]
    assert places["0", "out"].tolist() == places["1", "in"].tolist() == [1, 2, 3]


def test_tied_weights_stay_and_a_layer_called_twice_binds_what_it_reads() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.shared = nn.Conv2d(4, 4, 1)
            self.one, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.other(self.one(self.shared(self.a(x)) + self.shared(self.b(x))))
            return out

    places = graph.trace(Twice(), X).places
    assert places["a", "out"].tolist() == places["b", "out"].tolist() == places["shared", "in"].tolist()
    assert not places["one", "in"].any()
    assert not places["one", "out"].any()


def test_tracing_leaves_the_model_as_it_is() -> None:
    model = graphs.Encoder().train()
    state = torch.get_rng_state()
    fast = torch.backends.mha.get_fastpath_enabled()
    graph.trace(model, torch.randn(2, 6, 24, generator=torch.Generator()))
    assert all(not m._forward_hooks and not m._forward_pre_hooks and m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled() == fast
