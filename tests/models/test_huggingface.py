import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lightning_compress.core import select
from lightning_compress.core.tap import Taps
from lightning_compress.cost.macs import macs
from lightning_compress.models.huggingface import Logits, TextLogits, huggingface_model
from tests.models.bert import BERT, CONFIGS, classifier, texts


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        huggingface_model("resnet18", 10)


def test_an_image_classifier_and_its_folder(tmp_path: Path) -> None:
    config = {"model_type": "resnet", "depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8}
    model = huggingface_model(config, 7, in_channels=1).eval()
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    assert isinstance(model, Logits)
    model.net.save_pretrained(tmp_path)  # type: ignore[operator]
    again = huggingface_model(str(tmp_path), 7, pretrained=True, in_channels=1).eval()
    assert same(model, again)
    other = huggingface_model(str(tmp_path), 3, pretrained=True, in_channels=1).eval()
    assert other(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"convolution\.weight is \[8, 1, 7, 7\] in the weights .*\[8, 2, 7, 7\] here"):
        huggingface_model(str(tmp_path), 3, pretrained=True, in_channels=2)


def test_a_sound_classifier() -> None:
    config = {
        **{"model_type": "audio-spectrogram-transformer", "hidden_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "intermediate_size": 32, "num_mel_bins": 20, "max_length": 30},
    }
    assert huggingface_model(config, 5, task="audio")(torch.zeros(2, 1, 30, 20)).shape == (2, 5)
    config.pop("max_length")
    assert huggingface_model(config, 5, task="audio", max_length=40)(torch.zeros(2, 1, 40, 20)).shape == (2, 5)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_text_classifier_computes_what_the_library_does(name: str) -> None:
    model = classifier(name)
    assert isinstance(model, TextLogits)
    tokens = texts()
    wanted: Any = copy.deepcopy(model.net)
    wanted.set_attn_implementation("sdpa")
    torch.testing.assert_close(
        model(tokens), wanted(input_ids=tokens, attention_mask=(tokens != 0).long()).logits, atol=1e-6, rtol=1e-5
    )


def test_gpt_has_linear_layers_that_methods_and_costs_know(tmp_path: Path) -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(**sizes, vocab_size=18, n_positions=24, pad_token_id=0, num_labels=3)
    wanted = transformers.GPT2ForSequenceClassification(config).eval()
    wanted.save_pretrained(tmp_path)
    tokens, state = torch.randint(1, 18, (2, 7)), torch.get_rng_state()
    model = huggingface_model(str(tmp_path), 3, pretrained=True, vocab_size=18, max_length=24).eval()
    torch.testing.assert_close(model(tokens), wanted(input_ids=tokens).logits, atol=1e-6, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(macs(model, tokens).values()) == 7 * (16 * 48 + 16 * 16 + 2 * 16 * 64 + 16 * 3)
    assert len(select.weights(model, owner="test")) == 2 + 4 + 1


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_what_is_behind_a_text_changes_nothing(name: str) -> None:
    model, tokens = classifier(name), texts()
    outputs = model(tokens)
    torch.testing.assert_close(model(tokens[2:, :3]), outputs[2:])
    torch.testing.assert_close(model(nn.functional.pad(tokens[:, :8], (0, 4))), model(tokens[:, :8]))
    assert not torch.allclose(model(tokens[2:, :2]), outputs[2:], atol=1e-4), "but the text does"


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_scores_are_of_queries_and_keys(name: str) -> None:
    model, tokens = classifier(name), texts()
    layer, query, key = {
        "bert": ("net.bert.encoder.layer.1.attention.self", "query", "key"),
        "distilbert": ("net.distilbert.transformer.layer.1.attention", "q_lin", "k_lin"),
    }[name]
    taps = Taps(model, [f"{layer}.{part}" for part in (query, key, "scores")])
    model(tokens)
    queries, keys = (taps.features[f"{layer}.{part}"].view(3, 12, 4, 16) for part in (query, key))
    scores = taps.features[f"{layer}.scores"]
    wanted = torch.einsum("bihd,bjhd->bhij", queries, keys) / 16**0.5
    torch.testing.assert_close(scores, wanted)


@pytest.mark.slow
def test_it_compiles_without_a_graph_break() -> None:
    model, tokens = classifier(), texts()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), model(tokens))


@pytest.mark.slow
def test_it_exports_with_a_free_batch_size_and_length() -> None:
    model, tokens = classifier(), texts()
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=12)}
    program = torch.export.export(model, (tokens,), dynamic_shapes=(free,))
    other = torch.cat([tokens, texts(seed=1)])[:, :6]
    torch.testing.assert_close(program.module()(other), model(other))


def test_pretrained_texts_need_the_tokens_of_their_folder(tmp_path: Path) -> None:
    model: Any = classifier()
    model.net.save_pretrained(tmp_path)
    facts: dict[str, Any] = {"vocab_size": 60, "max_length": 12, "pretrained": True}
    again = huggingface_model(str(tmp_path), 2, **facts)
    assert same(model, again)
    torch.testing.assert_close(again.eval()(texts()), model(texts()))
    fresh = huggingface_model(str(tmp_path), 2, vocab_size=80, max_length=20)
    assert fresh.get_submodule("net.bert.embeddings.word_embeddings").weight.shape == (80, 64)
    with pytest.raises(ValueError, match=r"weights are of 60 tokens and the data has 40: write data\.tokenizer="):
        huggingface_model(str(tmp_path), 2, **{**facts, "vocab_size": 40})
    with pytest.raises(ValueError, match="13 positions and the data 14"):
        huggingface_model(str(tmp_path), 2, **{**facts, "max_length": 14})


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({"hidden_size": 64}, {}, r"model_type \(such as bert\)"),
        (BERT, {"pretrained": True}, "pretrained=true"),
        (BERT, {"trust_remote_code": True}, "no code from the hub"),
        (BERT, {"task": "video"}, "expected task image or text or audio, got 'video'"),
        (BERT, {"task": "image"}, "no classifier for task=image from bert"),
        ({"model_type": "brt"}, {}, "brt"),
        ("/nowhere/at/all", {}, "neither folder nor hub id"),
    ],
)
def test_errors_say_what_was_expected(config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        huggingface_model(config, 2, **options)


def test_code_beside_a_configuration_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config"}}')
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda _: "y")
    with pytest.raises(ValueError, match="custom code"):
        huggingface_model(str(tmp_path), 2, vocab_size=60)
    assert not (tmp_path / "ran").exists()


def test_logits_calls_by_keyword_and_takes_the_field() -> None:
    class Answer:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Classifier(nn.Module):
        def forward(self, pixel_values: Tensor) -> Answer:
            return Answer(pixel_values.mean((2, 3)))

    assert Logits(Classifier())(torch.ones(2, 3, 4, 4)).tolist() == [[1, 1, 1], [1, 1, 1]]
