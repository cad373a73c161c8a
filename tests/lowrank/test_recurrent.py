from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lightning_compress.core import edits
from lightning_compress.core.compressor import Compressor
from lightning_compress.cost.macs import macs
from lightning_compress.cost.params import num_params
from lightning_compress.lowrank.method import LowRank
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize

INPUTS = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(0))
KINDS: list[tuple[Any, dict[str, Any]]] = [
    (nn.LSTM, {}),
    (nn.GRU, {"bidirectional": True, "bias": False}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 4}),
    (nn.RNN, {"nonlinearity": "relu"}),
]


class Reader(nn.Module):
    """Sequences [batch, length, 20] to 3 classes; starts from states of its own and may read packed ones."""

    def __init__(self, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(20, 12, batch_first=True, **options)
        self.head = nn.LazyLinear(3)
        self(INPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        self.rnn.flatten_parameters()
        ways = 2 if self.rnn.bidirectional else 1
        state = torch.ones(self.rnn.num_layers * ways, len(inputs), self.rnn.hidden_size)
        states = state if self.rnn.mode != "LSTM" or self.rnn.proj_size else (state, state)
        given = () if getattr(self.rnn, "proj_size", 0) else (states,)
        outputs: Tensor = self.head(self.rnn(inputs, *given)[0].mean(1))
        return outputs


class Packed(nn.Module):
    """The same for sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.head = nn.GRU(20, 12), nn.Linear(12, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        lengths = torch.arange(len(inputs)) + 2
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        outputs: Tensor = self.head(pad_packed_sequence(self.rnn(packed)[0])[0].sum(0))
        return outputs


def reading(model: Any) -> Tensor:
    """What reads the inputs, both ways, as one matrix."""
    return torch.cat([value.detach() for name, value in model.rnn.named_parameters() if "weight_ih_l0" in name])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_reads_the_inputs_is_the_nearest_product_and_all_else_stays(kind: Any, options: dict[str, Any]) -> None:
    model: Any = Reader(kind, **options)
    before, own = reading(model), {name: value.clone() for name, value in model.rnn.state_dict().items()}
    LowRank(rank=3).attach(model, INPUTS)
    assert model.rnn[0].weight.shape == (3, 20)
    lost = (reading(model) @ model.rnn[0].weight.detach() - before).square().sum()
    assert float(lost) == pytest.approx(float(torch.linalg.svdvals(before)[3:].square().sum()), rel=1e-5)
    for name, value in model.rnn[1].state_dict().items():
        assert "weight_ih_l0" in name or torch.equal(value, own[name])


@pytest.mark.parametrize("build", [Reader, Packed])
def test_at_full_rank_it_computes_the_same_with_states_and_packed(build: Any) -> None:
    model: Any = build()
    with torch.no_grad():
        for name, value in model.rnn.named_parameters():
            if "weight_ih" in name:
                value[:, 12:] = 0  # of rank 12
        expected = model(INPUTS)
        assert torch.allclose(LowRank(rank=12).attach(model, INPUTS)(INPUTS), expected, atol=1e-6)
    assert len(model.rnn) == 2


def test_costs_by_hand() -> None:
    model = LowRank(rank=3, select="rnn").attach(Reader(nn.GRU), INPUTS)
    assert macs(model, INPUTS) == {"rnn.0": 6 * 3 * 20, "rnn.1": 6 * 36 * (3 + 12), "head": 36}
    assert num_params(model) == 3 * 20 + 36 * (3 + 12) + 72 + 39


def test_others_find_both_layers_and_edits_rebuild_them() -> None:
    compressor = Compressor([LowRank(rank=3), Prune(0.5, every=1), Quantize(6, 8)])
    model = compressor.attach(Reader(nn.GRU), INPUTS)
    compressor.prepare(model, [(INPUTS, None)])
    optimizer = torch.optim.Adam([*model.parameters(), *compressor.parameters()], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(INPUTS).square().mean().backward()
        optimizer.step()
        compressor.update(model, [optimizer])
    found = compressor.finalize(model.eval(), INPUTS)
    for name in ("rnn.0.weight", "rnn.1.weight_ih_l0", "rnn.1.weight_hh_l0"):
        assert found.stored[name].bits <= 8
        assert found.stored[name].sparsity == pytest.approx(0.5, abs=0.05)
    again = edits.replay(Reader(nn.GRU), found.edits)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: found.stored[name].value.shape for name in again.state_dict()
    }


def test_a_cell_stays_whole(caplog: pytest.LogCaptureFixture) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(20, 12), nn.Linear(12, 9)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.head(self.cell(inputs[:, 0]))
            return outputs

    LowRank(rank=1).attach(Steps(), INPUTS)
    assert "LowRank leaves as they are: cell (it is a GRUCell, not a plain nn.Linear" in caplog.text
