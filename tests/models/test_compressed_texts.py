"""BERT, DistilBERT and ALBERT under every kind of method, down to the files: real removal, int8, any length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_compress.core.compressor import Compressor
from lightning_compress.core.method import Compact, Method
from lightning_compress.core.schedule import OneShot
from lightning_compress.distill.hint import Hint
from lightning_compress.distill.method import Distill
from lightning_compress.export import onnx, packed, runtime, verify
from lightning_compress.prune.channels import Channel
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from tests.models.bert import classifier, texts, trained
from tests.prune import removing

TOKENS = texts()
NAMES = ["bert", "distilbert", "albert"]
SELF = {
    "bert": "net.bert.encoder.layer.1.attention.self",
    "distilbert": "net.distilbert.transformer.layer.1.attention",
    "albert": "net.albert.encoder.albert_layer_groups.0.albert_layers.0.attention",
}


def written(compact: Compact, base: nn.Module, folder: Path) -> packed.Packed:
    """The packed file, which gives back the outputs bit for bit."""
    packed.write(compact, folder / "model.lcz")
    again = packed.rebuild(packed.read(folder / "model.lcz"), base).eval()
    assert torch.equal(again(TOKENS), compact.model(TOKENS))
    return packed.read(folder / "model.lcz")


def agree(compact: Compact, folder: Path) -> None:
    """ONNX Runtime on the exported file computes the same at several lengths, with padding and without."""
    limit = verify.tolerance(compact.model)
    session = runtime.session(onnx.export(compact, TOKENS, folder / "model.onnx"))
    for tokens in (TOKENS, TOKENS[:, :7], TOKENS[:1, :2], texts(seed=3, batch=5, length=9)):
        verify.check(verify.compare(compact.model, session, tokens), limit)


@pytest.mark.parametrize("name", NAMES)
def test_heads_and_then_channels_are_removed_for_real(name: str, tmp_path: Path) -> None:
    base, model = classifier(name), classifier(name)
    pattern = Channel(model, TOKENS, removing.layers(model), heads=True)
    keep = {root: torch.tensor([False, True, False, True]) for root in pattern.keep()}
    assert len(keep) == (1 if name == "albert" else 2)
    heads = removing.cut(pattern, model, TOKENS, keep)
    removing.check(base, model, heads, TOKENS)
    small: Any = heads.model.get_submodule(SELF[name])
    counts = {key: value for key, value in vars(small).items() if "head" in key and isinstance(value, int)}
    assert set(counts.values()) <= {2, 16, 32}, "heads left, the width of one, of all together"
    assert {layer.out_features for layer in small.children() if isinstance(layer, nn.Linear)} <= {32, 64}
    heads.model.requires_grad_(True)
    both = Channel(heads.model, TOKENS, removing.layers(heads.model))
    compact = removing.cut(both, heads.model, TOKENS, removing.random_keep(both, 0))
    whole = Compact(compact.model, compact.stored, [*heads.edits, *compact.edits])
    removing.check(classifier(name), heads.model, whole, TOKENS)
    sizes = [sum(parameter.numel() for parameter in net.parameters()) for net in (base, whole.model)]
    assert sizes[1] < sizes[0]
    written(whole, classifier(name), tmp_path)


def test_movement_takes_what_training_pushes_to_zero_and_leaves_embeddings_alone() -> None:
    """As in Sanh et al. 2020, arXiv 2005.07683: of the layers of the encoder, not of embeddings nor the classifier."""
    method = Prune(OneShot(first=0.0, last=0.5, at=0.5), score="movement", select=r"\.layer\.\d+\.", every=1)
    compressor, model = trained(classifier(), [method], steps=6)
    found = compressor.finalize(model, TOKENS)
    zeros = {name: float((value == 0).float().mean()) for name, value in found.model.named_parameters()}
    weights = {name for name in zeros if ".layer." in name and name.endswith("weight") and "LayerNorm" not in name}
    assert len(weights) == 12
    assert all(abs(zeros[name] - 0.5) < 0.01 for name in weights)
    assert all(share < 0.01 for name, share in zeros.items() if name not in weights)
    assert torch.equal(found.model(TOKENS), model(TOKENS))


def test_weights_inputs_and_embeddings_have_eight_bits(tmp_path: Path) -> None:
    compressor, model = trained(classifier(), [Quantize(8, 8)])
    compact = compressor.finalize(model, TOKENS)
    coded = {name for name, stored in compact.stored.items() if stored.bits == 8}
    tables = {f"net.bert.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
    assert tables <= coded
    assert len(coded) == 3 + 2 * 6 + 2, "tables, six layers in each of two blocks, pooler and classifier"
    file = written(compact, classifier(), tmp_path)
    assert {name for name, stored in file.tensors.items() if stored.bits == 8} == coded


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_together(name: str, tmp_path: Path) -> None:
    teacher = classifier(name, seed=1, **({} if name == "distilbert" else {"hidden_size": 128}))
    hints = {"scores": Hint(r"\.scores$", loss="attention_scores", layers="uniform")}
    methods: list[Method] = [
        Prune(0.5, pattern="head", select="attention", every=1),
        Prune(0.25, pattern="channel", select="ffn|intermediate|lin1", every=1),
        Quantize(8, 8),
        Distill(teacher, hints=hints),
    ]
    compressor, model = trained(classifier(name), methods)
    compact = compressor.finalize(model, TOKENS)
    torch.testing.assert_close(compact.model(TOKENS), model(TOKENS), atol=1e-4, rtol=1e-3)
    written(compact, classifier(name), tmp_path)
    agree(compact, tmp_path)


def test_what_is_used_twice_is_in_the_file_once(tmp_path: Path) -> None:
    compact = Compressor([]).finalize(classifier("albert"), TOKENS)
    deeper = Compressor([]).finalize(classifier("albert", num_hidden_layers=6), TOKENS)
    sizes = [packed.write(each, tmp_path / "model.lcz") for each in (compact, deeper)]
    assert sizes[0] == sizes[1]
