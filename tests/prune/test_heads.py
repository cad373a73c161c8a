from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core.attention import FewerHeads
from lightning_compress.core.method import Compact
from lightning_compress.export import onnx, packed, runtime
from lightning_compress.prune.channels import Channel
from lightning_compress.prune.scores import magnitude
from tests.prune import graphs, removing

X = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(1))


def pruned() -> tuple[nn.Module, Channel, Any]:
    model = graphs.Encoder()
    pattern = Channel(model, X, removing.layers(model), heads=True)
    keep = {name: torch.arange(6) % 3 == 1 for name in pattern.keep()}
    return model, pattern, removing.cut(pattern, model, X, keep)


def test_heads_go_from_all_three_forms_of_attention() -> None:
    model, pattern, compact = pruned()
    removing.check(graphs.Encoder(), model, compact, X)
    own, apart, fused = (layer.attention for layer in compact.model.layers)
    assert isinstance(own, FewerHeads)
    assert (own.num_heads, own.in_proj_weight.shape, own.out_proj.weight.shape) == (2, (24, 24), (24, 8))
    assert (apart.num_heads, apart.all_head_size, apart.q.weight.shape, apart.out.weight.shape) == (
        2,
        8,
        (8, 24),
        (24, 8),
    )
    assert (fused.num_heads, fused.qkv.out_features) == (2, 24)
    # Rows 4 to 7 and 16 to 19 are heads 1 and 4.
    rows = torch.tensor([4, 5, 6, 7, 16, 17, 18, 19])
    layers: Any = model.layers
    assert torch.equal(apart.v.weight, layers[1].attention.v.weight[rows])
    assert torch.equal(own.in_proj_weight[8:16], layers[0].attention.in_proj_weight[24 + rows])
    del pattern


def test_heads_go_in_two_phases_and_the_file_holds_both(tmp_path: Path) -> None:
    _, _, first = pruned()
    first.model.train().requires_grad_(True)
    pattern = Channel(first.model, X, removing.layers(first.model), heads=True)
    compact = removing.cut(pattern, first.model, X, {name: torch.tensor([False, True]) for name in pattern.keep()})
    assert [layer.attention.num_heads for layer in compact.model.layers] == [1, 1, 1]  # type: ignore[union-attr]
    whole = Compact(compact.model, compact.stored, [*first.edits, *compact.edits])
    removing.check(graphs.Encoder(), first.model, whole, X)
    packed.write(whole, tmp_path / "model.lcz")
    again = packed.rebuild(packed.read(tmp_path / "model.lcz"), graphs.Encoder())
    assert torch.equal(again(X), compact.model(X))


def test_as_many_heads_as_each_is_wide() -> None:
    model: Any = nn.Sequential(graphs.Attention(9, 3, fused=True), nn.Linear(9, 2))
    example = torch.randn(2, 4, 9)
    pattern = Channel(model, example, removing.layers(model), heads=True)
    compact: Any = removing.cut(pattern, model, example, {"0.qkv": torch.tensor([True, False, True])})
    small = compact.model[0]
    assert (small.num_heads, small.head_dim, small.all_head_size) == (2, 3, 6)
    removing.check(nn.Sequential(graphs.Attention(9, 3, fused=True), nn.Linear(9, 2)), model, compact, example)


def test_masked_heads_get_no_gradient() -> None:
    model: Any = graphs.Encoder()
    pattern = Channel(model, X, removing.layers(model), heads=True)
    pattern.apply({name: torch.arange(6) != 2 for name in pattern.keep()})
    model(X).square().sum().backward()
    rows = model.layers[0].attention.parametrizations.in_proj_weight.original.grad.view(3, 6, -1)
    assert not rows[:, 2].any()
    assert rows[:, 3].any()


def test_a_head_is_scored_by_its_rows_of_query_key_and_value() -> None:
    model: Any = graphs.Encoder()
    attention = model.layers[1].attention
    expected = sum(getattr(attention, name).weight.detach().abs().view(6, -1).sum(1) for name in ("q", "k", "v"))
    pattern = Channel(model, X, removing.layers(model), heads=True)
    scores = {root: magnitude(units) for root, units in pattern.view().items()}
    torch.testing.assert_close(scores["layers.1.attention.q"], expected)
    assert [len(units) for units in scores.values()] == [6, 6, 6]


def test_channels_leave_heads_alone() -> None:
    model = graphs.Encoder()
    assert set(Channel(model, X, removing.layers(model)).keep()) == {f"layers.{n}.up" for n in range(3)}


def test_only_what_is_selected() -> None:
    model = graphs.Encoder()
    some = {name: layer for name, layer in removing.layers(model).items() if not name.endswith("attention.k")}
    assert set(Channel(model, X, some, heads=True).keep()) == {"layers.0.attention", "layers.2.attention.qkv"}
    with pytest.raises(ValueError, match="has heads that may go"):
        Channel(model, X, {"embed": some["embed"]}, heads=True)


@pytest.mark.parametrize("kind", ["padding", "causal", "float", "per_head"])
def test_fewer_heads_is_attention_with_the_rest_cut_out(kind: str) -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(8, 4, batch_first=kind != "causal", bias=kind != "float").eval()
    q, kv = torch.randn(3, 5, 8), torch.randn(3, 7, 8)
    square = torch.randn(3, 5, 8)
    masks: dict[str, Any] = {
        "padding": {"key_padding_mask": torch.arange(7).expand(3, 7) > torch.tensor([[6], [4], [2]])},
        "causal": {"attn_mask": torch.ones(3, 3).triu(1).bool(), "is_causal": True},
        "float": {"attn_mask": torch.randn(5, 7)},
        "per_head": {"attn_mask": torch.randn(12, 5, 7), "average_attn_weights": False},
    }
    inputs = (square, square, square) if kind == "causal" else (q, kv, kv)
    wanted, shares = whole(*inputs, **masks[kind])
    whole.__class__ = FewerHeads  # none is missing
    got, own_shares = whole(*inputs, **masks[kind])
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(own_shares, shares)
    assert whole(*inputs, **masks[kind], need_weights=False)[1] is None


def test_the_layer_of_pytorch_runs_with_fewer_heads() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(24, 6, 32, batch_first=True), nn.Linear(24, 5)).eval()
    pattern = Channel(model, X, removing.layers(model), heads=True)
    compact = removing.cut(pattern, model, X, {"0.self_attn": torch.arange(6) < 4})
    base = nn.Sequential(nn.TransformerEncoderLayer(24, 6, 32, batch_first=True), nn.Linear(24, 5))
    removing.check(base, model, compact, X)


@pytest.mark.parametrize("name", ["heads", "shuffled"])
def test_a_cut_model_runs_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    example = X
    if name == "heads":
        _, _, compact = pruned()
    else:
        example = torch.randn(2, 3, 8, 8)
        model = removing.lived(graphs.Shuffled())
        pattern = Channel(model, example, removing.layers(model))
        compact = removing.cut(pattern, model, example, removing.random_keep(pattern, 0))
    path = onnx.export(compact, example, tmp_path / "model.onnx")
    got = torch.from_numpy(runtime.session(path)(example.numpy()))
    torch.testing.assert_close(got, compact.model(example), atol=1e-5, rtol=1e-4)
