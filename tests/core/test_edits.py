import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core import edits, surgery
from lightning_compress.core.method import Edit
from lightning_compress.core.stored import Stored

INDEX = torch.tensor([0, 2])


def test_conv_sides_by_hand() -> None:
    conv: Any = nn.Conv2d(4, 3, 3)
    weight, bias = conv.weight.detach().clone(), conv.bias.detach().clone()
    net: Any = nn.Sequential(conv)
    edits.replay(net, [edits.keep("0", "out", INDEX), edits.keep("0", "in", torch.tensor([3]))])
    assert torch.equal(conv.weight, weight[[0, 2]][:, [3]])
    assert torch.equal(conv.bias, bias[[0, 2]])
    assert (conv.in_channels, conv.out_channels) == (1, 2)
    assert net(torch.ones(1, 1, 3, 3)).shape == (1, 2, 1, 1)


def test_linear_sides_by_hand() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 3))
    weight = net[0].weight.detach().clone()
    edits.replay(net, [edits.keep("0", "in", INDEX), edits.keep("0", "out", torch.tensor([1]))])
    assert torch.equal(net[0].weight, weight[[1]][:, [0, 2]])
    assert (net[0].in_features, net[0].out_features) == (2, 1)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.SyncBatchNorm(3), nn.BatchNorm2d(3, affine=False)])
def test_batch_norm_cuts_its_statistics_too(norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    norm.running_mean.copy_(torch.arange(3.0))
    net: Any = nn.Sequential(norm)
    edits.replay(net, [edits.keep("0", "out", INDEX)])
    assert norm.running_mean.tolist() == [0.0, 2.0]
    assert {tensor.shape[0] for tensor in net.state_dict().values() if tensor.dim()} == {2}
    assert norm.num_features == 2
    assert net.eval()(torch.ones(1, 2, 2, 2)).shape == (1, 2, 2, 2)


def test_depthwise_shrinks_on_both_sides() -> None:
    net: Any = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    x = torch.randn(1, 4, 5, 5)
    whole = net(x)
    edits.replay(net, [edits.keep("0", "out", INDEX)])
    assert (net[0].groups, net[0].in_channels, net[0].out_channels) == (2, 2, 2)
    torch.testing.assert_close(net(x[:, INDEX]), whole[:, INDEX])


def test_grouped_convs_keep_as_many_of_each_group() -> None:
    net: Any = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    x = torch.randn(1, 4, 5, 5)
    x[:, [0, 2]] = 0.0
    whole = net(x)
    edits.replay(net, [edits.keep("0", "in", torch.tensor([1])), edits.keep("0", "out", torch.tensor([0, 1, 4, 5]))])
    assert (net[0].groups, net[0].in_channels, net[0].out_channels) == (2, 2, 4)
    torch.testing.assert_close(net(x[:, [1, 3]]), whole[:, [0, 1, 4, 5]])


def test_filters_of_a_depthwise_conv_go_with_their_channel() -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 6, 1, groups=3))
    x = torch.randn(1, 3, 2, 2)
    whole = net(x)
    edits.replay(net, [edits.keep("0", "out", torch.tensor([0, 1, 4, 5]))])
    assert (net[0].groups, net[0].in_channels, net[0].out_channels) == (2, 2, 4)
    torch.testing.assert_close(net(x[:, [0, 2]]), whole[:, [0, 1, 4, 5]])


def test_a_transposed_conv_by_hand() -> None:
    net: Any = nn.Sequential(nn.ConvTranspose2d(4, 3, 2, stride=2))
    weight, bias = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    edits.replay(net, [edits.keep("0", "out", INDEX), edits.keep("0", "in", torch.tensor([1, 2, 3]))])
    assert torch.equal(net[0].weight, weight[1:][:, INDEX])
    assert torch.equal(net[0].bias, bias[INDEX])
    assert net(torch.ones(1, 3, 2, 2)).shape == (1, 2, 4, 4)


def test_a_dropped_block_takes_its_tensors_along() -> None:
    net: Any = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    stored = {name: Stored(tensor.detach()) for name, tensor in net.named_parameters()}
    left = edits.cut_stored(net, stored, edits.drop("1"))
    edits.replay(net, [edits.drop("1")])
    assert left.keys() == dict(net.named_parameters()).keys() == {"0.weight", "0.bias"}


def test_a_frozen_tensor_stays_frozen() -> None:
    net: Any = nn.Sequential(nn.Linear(4, 3).requires_grad_(False))
    edits.replay(net, [edits.keep("0", "out", INDEX)])
    assert not net[0].weight.requires_grad


def test_fold_gives_a_bias_and_takes_the_norm() -> None:
    net: Any = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3))
    edits.replay(net, [edits.fold("1", "0")])
    assert isinstance(net[1], nn.Identity)
    assert net[0].bias is not None
    assert list(net.state_dict()) == ["0.weight", "0.bias"]
    edits.replay(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), [edits.fold("1", "0")])


def test_edits_survive_json_and_give_the_same_shapes() -> None:
    made = [edits.keep("0", "out", INDEX), edits.keep("1", "out", INDEX), edits.fold("1", "0")]
    net: Any = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    edits.replay(net, json.loads(json.dumps(made)))
    assert net[0].weight.shape == (2, 2, 1, 1)


def test_a_layer_takes_another_form_in_every_place_it_has() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    net: Any = nn.Sequential(nn.Sequential(shared), shared)
    edits.replay(
        net, json.loads(json.dumps([edits.factor("0.0", "tucker", (2, 2)), edits.keep("0.0.2", "in", INDEX[:1])]))
    )
    assert net[0][0] is net[1]
    assert [tuple(each.weight.shape[:2]) for each in net[1]] == [(2, 4), (2, 2), (4, 1)]
    assert net[0][0][2].bias.count_nonzero() == 0
    assert isinstance(edits.replay(nn.Linear(9, 9), [edits.factor("", "svd", [2])]), nn.Sequential)


def test_tied_layers_are_one_and_their_norms_are_not() -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    first = net[0]
    edits.replay(net, [edits.tie(["0", "2"])])
    assert net[0] is net[2] is first
    assert net[1] is not net[3]
    assert list(surgery.own_names(net))[:3] == ["0.weight", "0.bias", "1.weight"]
    with pytest.raises(ValueError, match=r"cannot tie '1'.*stride.*alike in all but their values"):
        edits.replay(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, stride=2)), [edits.tie(["0", "1"])])


@pytest.mark.parametrize(
    ("layer", "edit", "message"),
    [
        (nn.Linear(2, 2), edits.keep("conv9", "out", INDEX), "a layer 'conv9' that the model does not have"),
        (nn.Linear(2, 2), edits.fold("0", "1"), "a layer '1' that the model does not have"),
        (nn.Linear(2, 2), {"kind": "melt", "layer": "0"}, "unknown edit 'melt'"),
        (nn.Linear(2, 2), edits.keep("0", "out", torch.tensor([2])), "out of range"),
        (nn.Linear(2, 2), edits.keep("0", "out", torch.tensor([], dtype=torch.int64)), "out of range"),
        (nn.LayerNorm(2), edits.keep("0", "out", INDEX), "cannot keep channels of a LayerNorm"),
        (
            nn.Conv2d(4, 4, 1, groups=2),
            edits.keep("0", "out", torch.tensor([0, 1, 2])),
            "equally many of each; got .2, 1",
        ),
        (nn.Conv2d(4, 8, 1, groups=4), edits.keep("0", "out", INDEX), "equally many of each"),
        (nn.GroupNorm(2, 4), edits.keep("0", "out", INDEX), "go in groups of 2"),
        (nn.MultiheadAttention(4, 2), edits.keep("0", "out", INDEX), "go in groups of 2"),
        (nn.ConvTranspose2d(4, 4, 1, groups=2), edits.keep("0", "in", INDEX), "a transposed conv in groups"),
        (nn.MultiheadAttention(4, 2), edits.set_count("0", "heads", 1), "cannot set 'heads' of '0' to 1"),
        (nn.MultiheadAttention(4, 2), edits.set_count("0", "num_heads", 0), "expected a count"),
        (nn.MultiheadAttention(4, 2), edits.set_count("0", "training", 1), "cannot set 'training'"),
        (nn.Linear(2, 2), edits.fold("0", "0"), "cannot fold '0'.*expected a batch norm"),
        (nn.Linear(9, 9), edits.factor("1", "svd", [1]), "a layer '1' that the model does not have"),
        (nn.Linear(9, 9), edits.factor("0", "svd", [5]), r"'0' as 'svd' of ranks \[5\] saves none of its weights"),
        (nn.Linear(9, 9), edits.factor("0", "svd", [10**9]), "ranks from 1 to"),
        (nn.Linear(9, 9), edits.tie(["0", "2"]), "a layer '2' that the model does not have"),
        (nn.BatchNorm1d(9), edits.tie(["0", "0"]), "cannot tie '0'.*expected two convs or linear layers"),
    ],
)
def test_bad_edits(layer: nn.Module, edit: Edit, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edits.replay(nn.Sequential(layer), [edit])


def test_names_of_a_bare_layer() -> None:
    layer = nn.Linear(3, 2)
    assert edits.cuts(layer, edits.keep("", "out", INDEX)) == {"weight": 0, "bias": 0}


@pytest.mark.parametrize("side", ["in", "out"])
def test_cut_stored_follows_the_model(side: str) -> None:
    net: Any = nn.Sequential(nn.Linear(3, 3))
    stored = {name: Stored(tensor.detach().clone()) for name, tensor in net.named_parameters()}
    edit = edits.keep("0", side, INDEX)
    cut = edits.cut_stored(net, stored, edit)
    edits.replay(net, [edit])

    def value(name: str) -> Tensor:
        return cut[name].value

    assert all(torch.equal(tensor, value(name)) for name, tensor in net.named_parameters())
