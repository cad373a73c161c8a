import torch
from torch import nn

from lightning_compress.core.method import Compact, Method, Stage
from lightning_compress.core.stored import Stored


class Bare(Method):
    stage = Stage.NUMERICS


def test_stages_are_ordered() -> None:
    assert sorted(Stage) == [Stage.STRUCTURE, Stage.SPARSITY, Stage.SHARING, Stage.NUMERICS, Stage.OBJECTIVE]


def test_every_hook_is_optional_and_does_nothing() -> None:
    method, model = Bare(), nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert method.attach(model, None) is model
    method.prepare(model, [])
    assert method.param_groups() == []
    assert method.task_weight(0.5) == 1.0
    assert method.update(model, 0.5) == {}
    assert method.missing_effect(model, 1.0) is None
    compact = Compact(model, {})
    assert method.finalize(compact, None) is compact
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_with_edits_appends_and_leaves_the_old_one_alone() -> None:
    compact = Compact(nn.Identity(), {"a": Stored(torch.zeros(1))}, [{"kind": "x"}])
    assert compact.with_edits([{"kind": "y"}]).edits == [{"kind": "x"}, {"kind": "y"}]
    assert compact.edits == [{"kind": "x"}]
