import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from lightning_compress.core import select, surgery
from lightning_compress.core.compressor import Compressor
from lightning_compress.core.mask import Mask
from lightning_compress.core.method import Compact, Method
from lightning_compress.core.weight import Weight
from lightning_compress.export import onnx, packed, runtime
from lightning_compress.prune.method import Prune
from lightning_compress.quantize.method import Quantize
from lightning_compress.share.method import Share

INPUTS = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))


class Classifier(nn.Module):
    """Sequences [batch, length, 5] to 3 classes."""

    def __init__(self, kind: Callable[..., nn.RNNBase] = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(5, 8, batch_first=True, **options)
        self.head = nn.LazyLinear(3)
        self(INPUTS)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.rnn(inputs)[0].mean(1))
        return outputs


class Tied(nn.Module):
    """Predicts the next of 20 tokens; the embedding is the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.output = nn.Linear(8, 20)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.output(self.rnn(self.embedding(tokens))[0])
        return outputs


def trained(net: nn.Module, inputs: Tensor, methods: list[Method], steps: int = 3) -> tuple[Compressor, nn.Module]:
    compressor = Compressor(methods)
    model = compressor.attach(net, inputs)
    compressor.prepare(model, [(inputs, None)])
    optimizer = torch.optim.Adam([*model.parameters(), *compressor.parameters()], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(inputs).square().mean().backward()
        optimizer.step()
        compressor.update(model, [optimizer])
    return compressor, model.eval()


def joint() -> list[Method]:
    return [Prune(0.5, every=1), Share(bits=3), Quantize(6, 8)]


KINDS = [
    (nn.LSTM, {}),
    (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    (nn.LSTM, {"proj_size": 4, "bias": False}),
    (nn.RNN, {}),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_every_weight_is_masked_shared_quantized_and_trained(kind: Any, options: dict[str, Any]) -> None:
    net = Classifier(kind, **options)
    names = [name for name in net.state_dict() if "weight" in name]
    before = copy.deepcopy(net)
    compressor, model = trained(net, INPUTS, joint())
    assert all(parameter.grad is not None for parameter in model.parameters())
    found = compressor.finalize(model, INPUTS)
    assert type(found.model.rnn) is kind
    assert found.model.state_dict().keys() >= before.state_dict().keys()
    for name in names:
        stored = found.stored[name]
        assert stored.levels is not None
        assert stored.mask is not None
        assert abs(float(stored.mask.float().mean()) - 0.5) < 0.01, name
        assert len(set(stored.value[stored.mask].tolist())) <= 8
        assert not torch.equal(stored.value, before.state_dict()[name])
    assert torch.equal(found.model(INPUTS), model(INPUTS))


def test_a_copy_after_a_step_goes_on_by_itself() -> None:
    _, model = trained(Classifier(), INPUTS, [Prune(0.5, every=1), Share(bits=3)])
    twin: Any = copy.deepcopy(model)
    twin.rnn.parametrizations.weight_hh_l0[0].mask.zero_()
    assert not torch.equal(twin(INPUTS), model(INPUTS))
    assert torch.equal(copy.deepcopy(surgery.plain(model))(INPUTS), model(INPUTS))


def test_a_weight_is_computed_once_a_call() -> None:
    calls = []

    class Counted(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            calls.append(weight.shape)
            return weight

    layer = nn.LSTM(5, 8)
    for weight in select.weights(layer, owner="test").values():
        weight.put(Counted())
    calls.clear()
    layer(INPUTS)
    assert calls == [(32, 5), (32, 8)]


def test_a_layer_that_moves_keeps_its_parametrizations() -> None:
    layer = nn.GRU(5, 8)
    mask = Mask((24, 8))
    Weight.of(layer, "weight_hh_l0").put(mask)
    layer.double().flatten_parameters()
    mask.mask.zero_()
    silent: Any = surgery.plain(layer)
    assert silent.weight_hh_l0.dtype == torch.float64
    assert not silent.weight_hh_l0.any()
    assert torch.equal(silent(INPUTS.double())[0], layer(INPUTS.double())[0])


def test_packed_sequences_are_quantized_too() -> None:
    layer = nn.GRU(5, 8, batch_first=True)
    sequence = pack_padded_sequence(INPUTS, torch.tensor([6, 4, 3, 1]), batch_first=True)
    surgery.put_on_input(layer, nn.Threshold(0.0, 0.0))
    plain = surgery.plain(layer)
    assert torch.equal(layer(sequence)[0].data, plain(sequence._replace(data=sequence.data.relu()))[0].data)


def test_what_is_tied_is_one_tensor() -> None:
    tokens = torch.randint(20, (3, 7), generator=torch.Generator().manual_seed(0))
    assert list(select.weights(Tied(), owner="test")) == ["embedding", "rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    assert list(select.weights(Tied(), owner="test", exclude=["output"])) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    compressor, model = trained(Tied(), tokens, joint())
    assert torch.equal(model.embedding.weight, model.output.weight)  # type: ignore[arg-type, union-attr]
    found = compressor.finalize(model, tokens)
    assert "output.weight" not in found.stored
    assert found.model.embedding.weight is found.model.output.weight  # type: ignore[union-attr]
    assert abs(float(found.stored["embedding.weight"].mask.float().mean()) - 0.5) < 0.01  # type: ignore[union-attr]
    assert hasattr(found.model.output, "input_quantizer")
    assert not hasattr(found.model.embedding, "input_quantizer")
    assert torch.equal(found.model(tokens), model(tokens))


def exported(found: Compact, inputs: Tensor, folder: Path, longer: Tensor) -> None:
    session = runtime.session(onnx.export(found, inputs, folder / "model.onnx", dynamic_length=True))
    for batch in (inputs, longer):
        torch.testing.assert_close(torch.from_numpy(session(batch.numpy())), found.model(batch), atol=1e-4, rtol=1e-4)


def test_files_hold_the_same_model_for_any_length(tmp_path: Path) -> None:
    compressor, model = trained(Classifier(bidirectional=True), INPUTS, joint())
    found = compressor.finalize(model, INPUTS)
    packed.write(found, tmp_path / "model.lcz")
    rebuilt = packed.rebuild(packed.read(tmp_path / "model.lcz"), Classifier(bidirectional=True))
    assert torch.equal(rebuilt(INPUTS), found.model(INPUTS))
    exported(found, INPUTS, tmp_path, torch.randn(2, 11, 5))
    assert b"LSTM" in (tmp_path / "model.onnx").read_bytes()


def test_what_cannot_take_recurrent_layers_says_so() -> None:
    with pytest.raises(ValueError, match=r"adaround fits .* rnn\.weight_ih_l0 is another; write exclude="):
        Quantize(8, 8, adaround=5).attach(Classifier(), INPUTS)
    with pytest.raises(ValueError, match=r"none of the selected layers \(head\) has channels that may go"):
        Prune(0.5, pattern="channel").attach(Classifier(), INPUTS)


def test_bits_of_recurrent_weights_by_name() -> None:
    net = Classifier()
    Quantize({"weight_hh": 4, "": 6}, {"rnn": 8, "head": None}, ends=8).attach(net, INPUTS)
    stacks = {name: weight.steps[0].bits for name, weight in select.weights(net, owner="test").items()}
    assert stacks == {"rnn.weight_ih_l0": 8, "rnn.weight_hh_l0": 4, "head": 8}
    assert hasattr(net.rnn, "input_quantizer")
    assert not hasattr(net.head, "input_quantizer")


@pytest.mark.parametrize("score", ["snip", "taylor"])
def test_scores_from_data_reach_recurrent_and_tied_weights(score: str) -> None:
    tokens = torch.randint(20, (4, 7), generator=torch.Generator().manual_seed(1))
    method = Prune(0.5, score=score, loss=lambda outputs, targets: outputs.square().mean())
    model = method.attach(Tied(), tokens)
    method.prepare(model, [(tokens, tokens)])
    evidence = method.evidence.gather(model, method._pattern, 0)  # type: ignore[arg-type]
    assert evidence
    for found in evidence.values():
        assert found.keys() == {"embedding", "rnn.weight_ih_l0", "rnn.weight_hh_l0"}
        assert all(bool(values.any()) for values in found.values())


@pytest.mark.slow
def test_files_of_tied_tokens(tmp_path: Path) -> None:
    tokens = torch.randint(20, (3, 7))
    compressor, model = trained(Tied(), tokens, joint())
    found = compressor.finalize(model, tokens)
    packed.write(found, tmp_path / "model.lcz")
    assert torch.equal(packed.rebuild(packed.read(tmp_path / "model.lcz"), Tied())(tokens), found.model(tokens))
    exported(found, tokens, tmp_path, torch.randint(20, (2, 12)))
