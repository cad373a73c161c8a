import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_compress.cost.params import num_params
from lightning_compress.models.text_rnn import TextRNN

TOKENS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [5, 0, 0, 0, 0]])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_both_directions_are_those_of_a_packed_layer_of_torch(cell: str, layers: int) -> None:
    torch.manual_seed(0)
    net = TextRNN(vocab_size=10, cell=cell, layers=layers, embedding=6, hidden=5, fc=4).eval()  # type: ignore[arg-type]
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](6, 5, layers, batch_first=True, bidirectional=True)
    state = {}
    for number in range(layers):
        for suffix, part in (("", net.forwards), ("_reverse", net.backwards)):
            for key, value in part[number].state_dict().items():
                state[key.replace("_l0", f"_l{number}{suffix}")] = value
    theirs.load_state_dict(state)
    packed = pack_padded_sequence(net.embedding(TOKENS), torch.tensor([5, 3, 1]), batch_first=True)
    _, states = theirs(packed)
    last = (states[0] if cell == "lstm" else states)[-2:]
    expected = net.fc2(net.fc1(torch.cat([last[0], last[1]], dim=1)).relu())
    torch.testing.assert_close(net(TOKENS), expected)


def test_published_size() -> None:
    # A direction of a BiLSTM with 300 inputs and 150 states has 4 gates, and torch two biases for each.
    recurrent = 2 * 4 * (300 * 150 + 150 * 150 + 2 * 150)
    assert num_params(TextRNN(vocab_size=1)) == 300 + recurrent + 300 * 200 + 200 + 200 * 2 + 2


def test_another_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="cell must be one of lstm, gru, got 'rnn'"):
        TextRNN(vocab_size=1, cell="rnn")  # type: ignore[arg-type]
