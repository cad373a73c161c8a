import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.mask import Mask
from lightning_compress.core.method import Compact, Method
from lightning_compress.core.schedule import Polynomial
from lightning_compress.core.surgery import masks_on
from lightning_compress.prune.method import Prune
from lightning_compress.share import cluster
from lightning_compress.share.codebook import Codebook
from lightning_compress.share.method import Share

STEPS = 12


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 6))


def attached(methods: Sequence[Method], model: Any, *, steps: int = STEPS) -> Compressor:
    made = Compressor(methods)
    made.attach(model, torch.zeros(1, 12))
    made.horizon = steps
    made.prepare(model, [])
    return made


def optimizer(made: Compressor, model: Any) -> torch.optim.Optimizer:
    groups = made.param_groups()
    own = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in model.parameters() if id(p) not in own]
    return torch.optim.Adam([{"params": rest}, *groups], lr=0.01, weight_decay=1e-3)


def train(made: Compressor, model: Any, steps: int = STEPS) -> list[dict[str, float]]:
    x, y = torch.randn(32, 12), torch.randn(32, 6)
    used, logs = optimizer(made, model), []
    for _ in range(steps):
        used.zero_grad()
        (model(x) - y).square().mean().backward()
        used.step()
        logs.append(made.update(model))
    return logs


def finalized(made: Compressor, model: Any) -> Compact:
    return made.finalize(model, torch.zeros(1, 12))


def test_shares_from_the_first_step_and_trains_the_centroids() -> None:
    model = net()
    before = model[0].weight.detach().clone()
    made = attached([Share(bits=2)], model)
    expected = cluster.kmeans(before.flatten(), cluster.init("linear", before.flatten(), 4, torch.Generator()), 300)
    assert torch.equal(model[0].weight.unique(), expected)
    codes = model[0].parametrizations.weight[0].codes.clone()
    assert torch.equal(expected[cluster.assign(before.flatten(), expected)].view_as(before), model[0].weight)
    train(made, model)
    after = model[0].weight.detach()
    assert len(after.unique()) == 4
    assert (after.unique() - expected).abs().min() > 1e-3
    assert torch.equal(model[0].parametrizations.weight[0].codes, codes)


def test_begins_at_start_with_the_weights_as_they_are_then() -> None:
    model = net()
    made = attached([Share(bits=2, start=0.5)], model)
    logs = train(made, model, STEPS // 2 - 1)
    assert len(model[0].weight.unique()) == 240
    assert logs == [{}] * 5
    latent = model[0].weight.detach().clone()
    (log,) = train(made, model, 1)
    shared = model[0].weight.detach()
    assert len(shared.unique()) == 4
    assert torch.nn.functional.cosine_similarity(shared.flatten(), latent.flatten(), dim=0) > 0.9
    assert 0.0 < log["share/distortion"] < 0.2


def test_the_optimizer_begins_anew_with_the_centroids_it_is_given() -> None:
    model, share = nn.Sequential(nn.Linear(8, 8)), Share(2, start=0.5)
    compressor = Compressor([share])
    compressor.attach(model, None)
    compressor.horizon = 4
    optimizer = torch.optim.Adam([*model.parameters()])
    (centroids,) = share.param_groups()[0]["params"]
    for step in range(1, 5):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        compressor.update(model, [optimizer])
        assert (centroids in optimizer.state) == (step != 2), "shared at step 2 of 4"
    assert optimizer.state[centroids]["step"] == 2
    assert optimizer.state[model.get_parameter("0.bias")]["step"] == 4


def test_the_distortion_is_what_sharing_takes_off() -> None:
    model = net()
    before = torch.cat([model[i].weight.detach().flatten() for i in (0, 2)])
    method = Share(bits=3)
    method.attach(model, None)
    found = method.update(model, 0.0)["share/distortion"]
    after = torch.cat([model[i].weight.detach().flatten() for i in (0, 2)])
    assert found == pytest.approx(float((after - before).square().sum() / before.square().sum()), rel=1e-5)


def test_clusters_what_the_mask_keeps_and_leaves_zeros_alone() -> None:
    model = net()
    dense = model[0].weight.detach().clone()
    made = attached([Prune(0.7), Share(bits=2)], model)
    kept = dense.abs() > dense.abs().flatten().kthvalue(168).values
    points = dense[kept]
    expected = cluster.kmeans(points, cluster.init("linear", points, 4, torch.Generator()), 300)
    book = model[0].parametrizations.weight[1]
    assert torch.equal(book.centroids.detach(), expected)
    train(made, model)
    assert torch.equal(model[0].weight != 0, kept)
    assert len(model[0].weight.unique()) == 5
    stored = finalized(made, model).stored["0.weight"]
    assert stored.mask is not None
    assert torch.equal(stored.mask, kept)
    assert torch.equal(stored.value, model[0].weight.detach() + 0.0)
    assert stored.bits == 2


def test_a_mask_that_moves_on_after_sharing_still_masks() -> None:
    model = net()
    ramp = Polynomial(last=0.8, end=1.0)
    made = attached([Prune(ramp, every=1), Share(bits=3, start=0.25)], model)
    seen = []
    for _ in range(STEPS):
        train(made, model, 1)
        seen.append(int((model[0].weight == 0).sum()))
    assert seen == sorted(seen)
    assert seen[3] < seen[-1] == 192


def test_a_channel_mask_is_kept_too() -> None:
    model = net()
    made = attached([Prune(0.5, pattern="channel"), Share(bits=3)], model)
    gone = (model[0].parametrizations.weight[0].mask == 0).flatten()
    assert int(gone.sum()) == 10
    train(made, model)
    assert model[0].weight[gone].count_nonzero() == 0
    stored = finalized(made, model).stored
    assert stored["0.weight"].value.shape == (10, 12)
    assert stored["2.weight"].value.shape == (6, 10)
    assert stored["0.weight"].bits == 3


def test_the_same_mask_is_put_on_top_and_once_is_enough() -> None:
    model = net()
    attached([Prune(0.5), Share(bits=3)], model)
    stack = model[0].parametrizations.weight
    assert [type(step).__name__ for step in stack] == ["Mask", "Codebook", "Mask"]
    assert stack[0] is stack[2]
    assert masks_on(model[0], "weight") == [stack[0]]
    assert masks_on(model[0], "bias") == []


def test_zeros_of_an_earlier_phase_stay_without_its_mask() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[:, ::2] = 0.0
    made = attached([Share(bits=2)], model)
    train(made, model)
    assert model[0].weight[:, ::2].count_nonzero() == 0
    assert model[0].weight[:, 1::2].count_nonzero() == 120
    stored = finalized(made, model).stored
    assert stored["0.weight"].mask is not None
    assert stored["0.weight"].value[:, ::2].count_nonzero() == 0
    assert stored["2.weight"].mask is None
    assert [type(step) for step in model[0].parametrizations.weight] == [Codebook, Mask]
    assert [type(step) for step in model[2].parametrizations.weight] == [Codebook]


def test_one_codebook_for_all_layers() -> None:
    model = net()
    every = torch.cat([model[i].weight.detach().flatten() for i in (0, 2)])
    made = attached([Share(bits=3, scope="global")], model)
    expected = cluster.kmeans(every, cluster.init("linear", every, 8, torch.Generator()), 300)
    books = [model[i].parametrizations.weight[0] for i in (0, 2)]
    assert books[0].centroids is books[1].centroids
    assert torch.equal(books[0].centroids.detach(), expected)
    assert [p.shape for p in made.param_groups()[0]["params"]] == [(8,)]
    train(made, model)
    stored = finalized(made, model).stored
    levels = [stored[f"{i}.weight"].levels for i in (0, 2)]
    assert levels[0] is not None
    assert levels[1] is not None
    assert torch.equal(levels[0], levels[1])


def tied() -> Any:
    model = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Linear(12, 6))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("before", [[], [0.5]], ids=["dense", "pruned"])
def test_tied_weights_stay_tied(before: list[float]) -> None:
    torch.manual_seed(0)
    model = tied()
    made = attached([*[Prune(sparsity) for sparsity in before], Share(bits=2)], model)
    assert len(made.param_groups()[0]["params"]) == 2
    train(made, model)
    assert torch.equal(model[0].weight, model[2].weight)
    assert 4 <= len(model[0].weight.unique()) <= 5


def test_tied_weights_count_once_in_one_codebook() -> None:
    torch.manual_seed(0)
    model = tied()
    every = torch.cat([model[i].weight.detach().flatten() for i in (0, 3)])
    attached([Share(bits=2, scope="global")], model)
    expected = cluster.kmeans(every, cluster.init("linear", every, 4, torch.Generator()), 300)
    assert torch.equal(model[0].parametrizations.weight[0].centroids.detach(), expected)


def test_blocks_of_neighbours() -> None:
    model = net()
    blocks = model[0].weight.detach().reshape(-1, 4)
    made = attached([Share(clusters=6, length=4, init="kmeans++", select="^0$")], model)
    first = cluster.init("kmeans++", blocks, 6, torch.Generator().manual_seed(0))
    found = model[0].parametrizations.weight[0]
    assert torch.equal(found.centroids.detach(), cluster.kmeans(blocks, first, 300))
    train(made, model)
    assert len(model[0].weight.detach().reshape(-1, 4).unique(dim=0)) == 6
    stored = finalized(made, model).stored["0.weight"]
    assert stored.levels is not None
    assert stored.levels.shape == (6, 4)
    assert torch.equal(stored.value, model[0].weight.detach())


def test_bits_by_layer() -> None:
    model = net()
    attached([Share({"^0$": 3, "": 1})], model)
    assert [len(model[i].weight.unique()) for i in (0, 2)] == [8, 2]


@pytest.mark.parametrize("init", ["linear", "density", "random", "kmeans++"])
def test_the_same_for_a_seed_whatever_the_global_generator(init: str) -> None:
    found = []
    for seed in (1, 2):
        model = net()
        torch.manual_seed(seed)
        attached([Share(bits=3, init=init, seed=5)], model)
        found.append(model[0].weight.detach())
    assert torch.equal(*found)


def test_the_centroids_learn_at_their_own_rate_and_do_not_decay() -> None:
    model = net()
    made = attached([Share(bits=2, lr=0.5)], model)
    (group,) = made.param_groups()
    assert group["lr"] == 0.5
    assert group["weight_decay"] == 0.0
    assert [p.shape for p in group["params"]] == [(4,), (4,)]
    assert "lr" not in attached([Share(bits=2)], net()).param_groups()[0]


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_goes_on_from_a_checkpoint(start: float) -> None:
    def made_anew(seed: int) -> tuple[Compressor, Any, torch.optim.Optimizer]:
        model = net()
        if seed:
            with torch.no_grad():
                model[0].weight.normal_()
        made = attached([Prune(0.5), Share(bits=3, start=start, init="kmeans++")], model)
        return made, model, optimizer(made, model)

    x, y = torch.randn(32, 12), torch.randn(32, 6)

    def steps(made: Compressor, model: Any, used: torch.optim.Optimizer, number: int) -> None:
        for _ in range(number):
            used.zero_grad()
            (model(x) - y).square().mean().backward()
            used.step()
            made.update(model)

    whole = made_anew(0)
    steps(*whole, 8)
    saved = copy.deepcopy([part.state_dict() for part in whole])
    steps(*whole, 4)
    resumed = made_anew(1)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    steps(*resumed, 4)
    for left, right in zip(whole[1].state_dict().values(), resumed[1].state_dict().values(), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(whole[1](x), resumed[1](x))


def test_finalizing_folds_to_a_plain_model_with_the_same_outputs() -> None:
    model = net()
    made = attached([Prune(0.6), Share(bits=3)], model)
    train(made, model)
    x = torch.randn(5, 12)
    compact = finalized(made, model)
    assert type(compact.model[0]) is nn.Linear  # type: ignore[index]
    assert torch.equal(compact.model(x), model(x))


def test_a_layer_with_one_value_stops_the_run() -> None:
    model = net()
    nn.init.constant_(model[2].weight, 0.25)
    made = attached([Share(bits=2)], model)
    with pytest.raises(NoEffectError, match="all weights of 2 share one value"):
        train(made, model, 1)


def test_a_codebook_that_stays_off_stops_the_run() -> None:
    model = net()
    method = Share(bits=2)
    method.attach(model, None)
    assert method.settled(0.0)
    why = method.missing_effect(model, 0.0)
    assert why == "the codebook of 0 is off though progress is past start=0.0"


def masked(model: Any) -> Any:
    return Prune(0.5).attach(model, None)


def pruned_before(model: Any) -> Any:
    with torch.no_grad():
        model[0].weight[:, ::2] = 0.0
    return model


def shared(model: Any) -> Any:
    return Share(bits=2).attach(model, None)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (masked, {"bits": 3, "length": 4, "init": "random"}, "length=4 fills the zeros that pruning left in '0'"),
        (pruned_before, {"bits": 3, "length": 4, "init": "random"}, "length=4 fills the zeros"),
        (shared, {"bits": 2}, "the weight of '0' has a codebook already"),
        (None, {"bits": 3, "length": 5, "init": "random"}, "rows of '0' have 12 weights, not a multiple of length=5"),
        (None, {"bits": 8}, "256 clusters save nothing on '0', which has 240 weights or blocks"),
        (None, {"bits": {"^0$": 4}}, r"none of the patterns \^0\$ is in '2'"),
        (None, {"bits": {"fc": 4, "": 3}}, "pattern 'fc' is in none of the layers' names: 0, 2"),
        (None, {"bits": 4, "select": "conv"}, "Share matched no layer"),
    ],
)
def test_layers_that_cannot_share_are_named(model: Any, options: dict[str, Any], message: str) -> None:
    start = net() if model is None else model(net())
    with pytest.raises(ValueError, match=message):
        Share(**options).attach(start, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs bits or clusters, one of them; got bits=None, clusters=None"),
        ({"bits": 4, "clusters": 16}, "needs bits or clusters"),
        ({"bits": 0}, "bits are 1 to 16, clusters 2 to 65536; got bits=0"),
        ({"bits": 17}, "bits are 1 to 16"),
        ({"clusters": {"conv": 1}}, "clusters 2 to 65536"),
        ({"bits": 4, "scope": "network"}, "scope must be one of layer, global; got 'network'"),
        ({"bits": {"a": 4, "b": 5}, "scope": "global"}, "one codebook for all layers has one size"),
        ({"bits": 4, "init": "kmeans"}, r"init must be one of .*did you mean 'kmeans\+\+'"),
        ({"bits": 4, "length": 2}, r"init='linear' orders single weights; with length=2 write 'kmeans\+\+'"),
        ({"bits": 4, "length": 0}, "length and iterations count from 1 up"),
        ({"bits": 4, "iterations": 0}, "length and iterations count from 1 up"),
        ({"bits": 4, "start": 1.0}, r"start lies in \[0, 1\); .*start=1.0"),
    ],
)
def test_settings_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Share(**options)
