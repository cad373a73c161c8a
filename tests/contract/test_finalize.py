import copy
import math
import re
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_compress.core import edits, select
from lightning_compress.core.fixed import FixedQuantizer
from lightning_compress.core.forms import OnProjection
from lightning_compress.core.select import WEIGHTED
from lightning_compress.core.stored import Stored
from lightning_compress.module import CompressionModule
from tests.contract import cases


def _weights(name: str) -> dict[str, Stored]:
    """All stored weights that there are to compress."""
    found = cases.finalized(name)
    names = {id(parameter): key for key, parameter in found.model.named_parameters()}
    weights = select.weights(found.model, owner="contract")
    return {key: found.stored[names[id(weight.value)]] for key, weight in weights.items()}


def _base(name: str) -> dict[str, int]:
    """Output channels of each layer before any was removed, once layers have taken other forms and blocks are gone."""
    forms = [edit for edit in cases.finalized(name).edits if edit["kind"] in ("factor", "tie", "drop", "reuse")]
    base = edits.replay(cases.CASES[name].net(), forms)
    layers: Any = {n: m for n, m in base.named_modules() if isinstance(m, WEIGHTED)}
    return {name: len(layer.weight) for name, layer in layers.items()}


every_case = cases.each(cases.CASES)


@every_case
def test_training_ends_with_finite_losses(name: str) -> None:
    rows = cases.trained(name).epochs
    assert len(rows) == cases.EPOCHS
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert {"train/loss", "train/task_loss", "val/loss", "val/accuracy"} <= rows[0].keys()
    assert ("train/distill" in rows[0]) == ("distill" in name)


@every_case
def test_finalizing_leaves_training_as_it_is(name: str) -> None:
    class Finalize(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert isinstance(pl_module, CompressionModule)
            before = copy.deepcopy(pl_module.state_dict())
            modes = [module.training for module in pl_module.modules()]
            pl_module.finalize()
            assert cases.differences(before, pl_module.state_dict()) == []
            assert modes == [module.training for module in pl_module.modules()]

    disturbed = cases.fit(cases.module(cases.CASES[name]), cases.trainer(None, Finalize()))
    assert cases.differences(cases.trained(name).state_dict(), disturbed.state_dict()) == []
    assert cases.differences(cases.trained(name).epochs, disturbed.epochs) == []


@every_case
def test_a_finalized_model_is_plain(name: str) -> None:
    found = cases.finalized(name).model
    assert not any(parametrize.is_parametrized(module) for module in found.modules())
    assert not any(module.training for module in found.modules())
    assert all(hasattr(module, "output_quantizer") for module in found.modules() if module._forward_hooks)
    assert all(tensor.is_contiguous() for tensor in found.state_dict().values())
    known = {FixedQuantizer, OnProjection, *map(type, cases.CASES[name].net().modules())}
    assert all(type(m) in known or type(m).__module__.startswith("torch.nn.") for m in found.modules())
    assert all(tensor.device.type == "cpu" for tensor in found.state_dict().values())
    assert not any(parameter.requires_grad for parameter in found.parameters())


@every_case
def test_stored_is_the_model_bit_by_bit(name: str) -> None:
    found = cases.finalized(name)
    state = cases.state(found.model)
    assert found.stored.keys() == state.keys()
    for key, stored in found.stored.items():
        assert stored.value.dtype == state[key].dtype, key
        assert torch.equal(stored.value, state[key]), key
        assert torch.equal(stored.value, stored.dequantize()), key


@every_case
def test_outputs_are_those_of_the_trained_model(name: str) -> None:
    deployed = cases.outputs(cases.finalized(name).model)
    trained = cases.outputs(copy.deepcopy(cases.trained(name).model))
    assert deployed.std() > 1e-3
    # A sum in another order, the norm folded, falls on the other side of a rounding boundary now and then.
    flips = cases.CASES[name].activation_bits < 32
    apart = ~torch.isclose(deployed, trained, rtol=1e-5, atol=1e-5)
    assert apart.float().mean() <= (0.1 if flips else 0.0)
    assert (deployed - trained).abs().max() <= 0.1 * deployed.std()


@every_case
def test_masked_weights_are_exactly_zero(name: str) -> None:
    masks = 0
    for key, stored in cases.finalized(name).stored.items():
        if stored.mask is not None:
            masks += 1
            assert stored.mask.shape == stored.value.shape, key
            assert stored.value[~stored.mask].count_nonzero() == 0, key
    # A codebook leaves the zeros that a layer began with, such as an embedding of padding.
    padded = any(getattr(module, "padding_idx", None) is not None for module in cases.CASES[name].net().modules())
    assert (masks > 0) == ("prune" in name or "channel" in name or (padded and "share" in name))


@every_case
def test_edits_rebuild_the_shape(name: str) -> None:
    found = cases.finalized(name)
    rebuilt = cases.state(edits.replay(cases.CASES[name].net(), found.edits))
    assert {key: value.shape for key, value in rebuilt.items()} == {
        key: stored.value.shape for key, stored in found.stored.items() if "put_quantizer." not in key
    }


@cases.each([n for n, c in cases.CASES.items() if c.sparsity is not None and c.channels is None])
def test_sparsity_is_what_was_asked_for(name: str) -> None:
    case, weights = cases.CASES[name], _weights(name)
    assert case.sparsity is not None
    gone = {}
    for layer, stored in weights.items():
        assert stored.mask is not None
        gone[layer] = int((~stored.mask).sum())
        zeros = int((stored.value == 0).sum())
        assert zeros == gone[layer] if case.weight_bits == 32 else zeros >= gone[layer]
    if case.overall:
        sizes = sum(stored.value.numel() for stored in weights.values())
        assert abs(sum(gone.values()) - case.sparsity * sizes) <= 1
        assert len({round(gone[layer] / weights[layer].value.numel(), 2) for layer in weights}) > 1
    else:
        assert all(abs(gone[layer] - case.sparsity * weights[layer].value.numel()) <= 1 for layer in weights)


@cases.each([n for n, c in cases.CASES.items() if c.channels is not None])
def test_channels_are_as_many_as_asked_for(name: str) -> None:
    case, weights, base = cases.CASES[name], _weights(name), _base(name)
    assert case.channels is not None
    *hidden, last = base
    for layer in hidden:
        share = case.channels if re.search(case.cut, layer) else 0.0
        assert abs(weights[layer].value.shape[0] - (1 - share) * base[layer]) <= (share > 0)
    assert weights[last].value.shape[0] == base[last]


@cases.each([n for n, c in cases.CASES.items() if c.channels is not None and c.sparsity is not None])
def test_single_zeros_and_channels_both_reach_their_share(name: str) -> None:
    case = cases.CASES[name]
    single, channel = cases.trained(name).compressor.methods[:2]
    for keep in single._pattern.keep().values():  # type: ignore[union-attr, operator]
        assert abs(int((~keep).sum()) - (case.sparsity or 0) * keep.numel()) <= 1
    for keep in channel._pattern.keep().values():  # type: ignore[union-attr, operator]
        assert abs(int((~keep).sum()) - (case.channels or 0) * keep.numel()) <= 1


@every_case
def test_bits_are_what_was_asked_for(name: str) -> None:
    case, found = cases.CASES[name], cases.finalized(name)
    for layer, stored in _weights(name).items() if case.clusters is None else ():
        assert stored.bits in (case.choices or (case.weight_bits,)), layer
        assert (stored.codes is None) == (case.weight_bits == 32), layer
        if stored.codes is not None:
            assert len(set(stored.codes.flatten().tolist())) > min(2, stored.bits), layer
            even = stored.symmetric and stored.levels is None
            top = 2 ** (stored.bits - 1) - 1 if even else 2**stored.bits - 1
            assert int(stored.codes.min()) >= (-top if even else 0), layer
            assert int(stored.codes.max()) <= top, layer
            if stored.levels is not None or not case.full_range:
                continue
            # Every scale is used to its end: no bit is wasted.
            rows = (stored.codes if stored.axis is None else stored.codes.flatten(1)).reshape(
                -1, stored.codes[0].numel()
            )
            assert int(rows.max() - rows.min()) >= top, layer
    if case.choices:
        assert min(stored.bits for stored in _weights(name).values()) < case.weight_bits
    reading = select.readers(select.weights(found.model, owner="contract").values())
    fixed = [m for n, m in found.model.named_modules() if n.endswith("input_quantizer")]
    assert len(fixed) == (0 if case.activation_bits == 32 else len(reading))
    several = case.choices if "bayesian" in name else (case.activation_bits,)
    assert all(isinstance(m, FixedQuantizer) and m.bits in several for m in fixed)
    assert any(n.endswith("output_quantizer") for n, _ in found.model.named_modules()) == ("outputs" in name)


@cases.each([n for n, c in cases.CASES.items() if c.clusters is not None])
def test_levels_are_as_many_as_asked_for(name: str) -> None:
    case = cases.CASES[name]
    assert case.clusters is not None
    for layer, stored in _weights(name).items():
        assert stored.levels is not None, layer
        assert stored.codes is not None, layer
        assert stored.levels.shape == ((case.clusters,) if case.length == 1 else (case.clusters, case.length)), layer
        assert stored.bits == math.ceil(math.log2(case.clusters)), layer
        assert stored.codes.numel() * case.length == stored.value.numel(), layer
        used = stored.codes if stored.mask is None else stored.codes[stored.mask]
        assert len(torch.unique(used)) > 2, layer
        if case.weight_bits < 32:  # what is rounded is the levels: whole multiples of the scale
            assert torch.equal(stored.levels, stored.levels.round()), layer
            assert 1 < int(stored.levels.abs().max()) <= 2 ** (case.weight_bits - 1), layer


@cases.each([n for n, c in cases.CASES.items() if c.activation_bits < 32])
def test_batch_norms_go_where_they_can(name: str) -> None:
    found = cases.finalized(name).model
    norms = [m for m in found.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == []
