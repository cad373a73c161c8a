"""Students and teachers of texts: losses by other means, layer maps as in papers, presets on BERT and DistilBERT."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core.compressor import Compressor
from lightning_compress.distill import features, layer_map
from lightning_compress.distill.hint import Hint
from lightning_compress.distill.method import Distill
from lightning_compress.models.text_transformer import TextTransformer
from lightning_compress.run.config import build, compose
from tests.models.bert import classifier, texts

TOKENS = texts()
GIVEN = TOKENS != 0
LAYER = r"(^|\.)(layer|blocks)\.\d+$"


def states(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cosine_is_that_of_the_library_over_what_is_given() -> None:
    one, other = states(0, 3, 12, 8), states(1, 3, 12, 8)
    wanted = F.cosine_embedding_loss(one[GIVEN], other[GIVEN], torch.ones(int(GIVEN.sum())))
    torch.testing.assert_close(features.cosine(one, other, GIVEN), wanted)


def test_patience_is_the_cosine_of_first_states() -> None:
    one, other = states(0, 3, 12, 8), states(1, 3, 12, 8)
    wanted = (2.0 - 2.0 * F.cosine_similarity(one[:, 0], other[:, 0])).mean() / 8  # |a - b|^2 of two of norm 1
    torch.testing.assert_close(features.patience(one, other), wanted)


def test_attention_scores_are_compared_within_each_text() -> None:
    one, other = states(0, 3, 4, 12, 12), states(1, 3, 4, 12, 12)
    squares = [(one - other)[row, :, :length, :length].square().flatten() for row, length in enumerate(GIVEN.sum(1))]
    torch.testing.assert_close(features.attention_scores(one, other, GIVEN), torch.cat(squares).mean())


def test_maps_are_those_of_the_papers() -> None:
    def of(pairs: list[tuple[int, int]]) -> dict[int, int]:
        return {student + 1: teacher + 1 for student, teacher in pairs}

    assert of(layer_map.uniform(6, 12)) == {1: 2, 2: 4, 3: 6, 4: 8, 5: 10, 6: 12}
    assert of(layer_map.uniform(4, 12)) == {1: 3, 2: 6, 3: 9, 4: 12}
    assert of(layer_map.skip(6, 12)) == {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}
    assert of(layer_map.last(6, 12)) == {1: 7, 2: 8, 3: 9, 4: 10, 5: 11}


def attached(preset: str, student: nn.Module, teacher: nn.Module) -> tuple[nn.Module, Compressor, Any]:
    node = compose([f"distill={preset}"])["methods"]["distill"]
    compressor = Compressor([build(node, teacher=teacher)])
    return compressor.attach(student, TOKENS), compressor, compressor.methods[0]


def terms(model: nn.Module, compressor: Compressor) -> dict[str, Tensor]:
    outputs, batch = model(TOKENS), (TOKENS, torch.tensor([0, 1, 1]))
    return compressor.loss(compressor.step(batch, outputs, F.cross_entropy(outputs, batch[1]), model))


def hidden(model: Any) -> list[Tensor]:
    """What the library says that embeddings and layers put out."""
    return list(model.net(input_ids=TOKENS, attention_mask=GIVEN.long(), output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("preset", ["distilbert", "pkd", "tinybert"])
def test_presets_compare_the_layers_that_the_papers_say(preset: str) -> None:
    student, teacher = classifier("distilbert"), classifier("bert", seed=1, num_hidden_layers=4)
    model, compressor, _ = attached(preset, student, teacher)
    found = terms(model, compressor)
    ours, theirs = hidden(student), hidden(teacher)
    if preset == "distilbert":
        wanted = sum(features.cosine(ours[at], theirs[2 * at], GIVEN) for at in (1, 2))
        torch.testing.assert_close(found["hint/hidden"], wanted)
        ours_soft, theirs_soft = (F.log_softmax(net(TOKENS) / 2.0, 1) for net in (student, teacher))
        soft = F.kl_div(ours_soft, theirs_soft, reduction="batchmean", log_target=True)
        torch.testing.assert_close(found["distill"], 5.0 * 4.0 * soft)
    elif preset == "pkd":
        torch.testing.assert_close(found["hint/patience"], 100.0 * features.patience(ours[1], theirs[2]))
    else:
        assert {name: term.requires_grad for name, term in found.items()} == dict.fromkeys(
            ("distill", "hint/embeddings", "hint/hidden", "hint/scores"), True
        )


def test_tinybert_learns_projections_of_hidden_states_and_compares_scores_as_they_are() -> None:
    student, teacher = classifier("bert", hidden_size=32), classifier("bert", seed=1, num_hidden_layers=4)
    model, compressor, method = attached("tinybert", student, teacher)
    shapes = [tuple(parameter.shape) for group in method.param_groups() for parameter in group["params"]]
    assert shapes == 3 * [(64, 32), (64,)], "of the embeddings and two layers"
    found = terms(model, compressor)
    part = method.hints[1].parts[1].adapters[0]
    wanted = F.mse_loss(method.hints[1].parts[0].adapters[0](hidden(student)[1]), hidden(teacher)[2])
    torch.testing.assert_close(found["hint/hidden"], wanted + F.mse_loss(part(hidden(student)[2]), hidden(teacher)[4]))
    torch.autograd.backward(found["hint/scores"])
    heads = student.get_parameter("net.bert.encoder.layer.1.attention.self.query.weight").grad
    assert heads is not None
    assert heads.view(4, 8, 32).abs().sum((1, 2)).min() > 0, "every head learns"
    layer = student.get_parameter("net.bert.encoder.layer.1.attention.self.value.weight")
    assert layer.grad is None, "the scores of the last layer know nothing of its values"


def test_the_networks_of_this_package_learn_likewise() -> None:
    nets = [TextTransformer(vocab_size=60, depth=depth, features=32).eval() for depth in (1, 2)]
    model, compressor, _ = attached("tinybert", *nets)
    assert all(term.item() > 0 for term in terms(model, compressor).values())


@pytest.mark.parametrize(
    ("hint", "student", "message"),
    [
        (
            Hint(r"\.layers$", loss="hint", layers="uniform"),
            {},
            r"no module of TextLogits matches .*it has net, net\.bert",
        ),
        (Hint(LAYER, loss="hint", layers="uniform"), {"num_hidden_layers": 5}, "got 5 of the student and 4 of the"),
        (Hint(LAYER, loss="hint", layers="skip"), {"num_hidden_layers": 1}, "'skip' needs"),
        (Hint(r"\.scores$", loss="attention_scores", layers="uniform"), {"num_attention_heads": 2}, "as many heads"),
    ],
)
def test_what_cannot_be_mapped_is_known_at_once(hint: Hint, student: dict[str, Any], message: str) -> None:
    teacher = classifier("bert", seed=1, num_hidden_layers=4)
    compressor = Compressor([Distill(teacher, hints={"layers": hint})])
    with pytest.raises(ValueError, match=message):
        compressor.attach(classifier("bert", **student), TOKENS)


def test_lists_are_names_and_not_expressions() -> None:
    with pytest.raises(ValueError, match="one regular expression each"):
        Hint(["a", "b"], loss="hint", layers="uniform")


def test_where_texts_end_a_model_has_to_say() -> None:
    nets = [nn.Sequential(nn.Embedding(60, 4), nn.Flatten(), nn.Linear(48, 2)) for _ in range(2)]
    with pytest.raises(ValueError, match="expected a model with a padding_id"):
        Compressor([Distill(nets[0], hints={"a": Hint("0", loss="cosine")})]).attach(nets[1], TOKENS)
