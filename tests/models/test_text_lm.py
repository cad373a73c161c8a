import torch

from lightning_compress.core import select
from lightning_compress.cost.params import num_params
from lightning_compress.models.text_lm import TextLM

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def test_the_weight_is_counted_once() -> None:
    # Each layer has 4 gates, two square matrices and torch's two biases; the output layer adds a bias.
    layer = 4 * (2 * 8 * 8 + 2 * 8)
    net = TextLM(vocab_size=50, layers=3, features=8)
    assert num_params(net) == 50 * 8 + 3 * layer + 50
    found = select.weights(net, owner="A test")
    assert [len(weight.places) for weight in found.values()] == [2, *[1] * 6]
    assert [place.layer for place in found["embedding"].places] == ["embedding", "fc"]


def test_logits_are_the_last_states_beside_each_embedding() -> None:
    net = TextLM(vocab_size=10, layers=1, features=6).eval()
    states, _ = net.lstms[0](net.embedding(TOKENS))
    expected = torch.einsum("btf,vf->bvt", states, net.embedding.weight) + net.fc.bias[:, None]
    torch.testing.assert_close(net(TOKENS), expected)


def test_what_follows_changes_nothing_before_it() -> None:
    net = TextLM(vocab_size=10, features=6).eval()
    torch.testing.assert_close(net(TOKENS[:, :3]), net(TOKENS)[:, :, :3])
    assert not torch.allclose(net(TOKENS[:, 1:])[:, :, 0], net(TOKENS)[:, :, 1]), "and what came before does"


def test_dropout_is_of_layers_and_not_in_evaluation() -> None:
    net = TextLM(vocab_size=10, features=6, dropout=0.5)
    assert not torch.equal(net(TOKENS), net(TOKENS))
    assert torch.equal(net.eval()(TOKENS), net(TOKENS))
