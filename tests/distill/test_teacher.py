import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.core.method import Step
from lightning_compress.distill.teacher import Teacher, fingerprint


class Counting(nn.Module):
    """A classifier that counts the samples it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        out: Tensor = self.net(x)
        return out


DATA = torch.randn(50, 3, generator=torch.Generator().manual_seed(5))


def call(teacher: Teacher, *index: int, view: int = 0) -> Tensor:
    place = torch.tensor(index)
    outputs: Tensor = teacher(DATA[place], place, torch.full_like(place, view))
    return outputs


def test_frozen_in_eval_mode_and_without_a_graph() -> None:
    model = Counting().train()
    teacher = Teacher(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = DATA.clone().requires_grad_()
    out = teacher(x)
    assert not out.requires_grad
    assert not out.is_inference()  # it can be saved for backward
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(out, teacher(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_hash_is_stable_and_sensitive() -> None:
    torch.manual_seed(3)
    first: Any = Counting()
    torch.manual_seed(3)
    same = Counting()
    assert fingerprint(first) == fingerprint(same) == Teacher(first).hash
    assert fingerprint(first) == fingerprint(first.to(memory_format=torch.channels_last))
    seen = {fingerprint(first)}
    with torch.no_grad():
        first.net[3].bias[2] += 1e-6
        seen.add(fingerprint(first))
        first.net[1].running_mean[0] += 1e-6
        seen.add(fingerprint(first))
    first.net[1].num_batches_tracked += 1
    seen.add(fingerprint(first))
    seen.add(fingerprint(first.double()))
    assert len(seen) == 5
    assert all(len(value) == 16 for value in seen)


def test_hash_tells_names_and_shapes_apart() -> None:
    zeros = torch.zeros(6)

    def hashed(name: str, *shape: int) -> str:
        module = nn.Module()
        module.register_buffer(name, zeros.view(*shape))
        return fingerprint(module)

    assert len({hashed("a", 6), hashed("b", 6), hashed("a", 2, 3), hashed("a", 3, 2)}) == 4


def test_cache_gives_the_same_outputs() -> None:
    model = Counting()
    cached, fresh = Teacher(model, cache=True), Teacher(model)
    for index in ([4, 1, 9], [0, 2, 3], [9, 4, 1], [49, 0, 30]):
        torch.testing.assert_close(call(cached, *index), call(fresh, *index))


def test_cache_shows_the_teacher_each_sample_once() -> None:
    model = Counting()
    teacher = Teacher(model, cache=True)
    for epoch in range(3):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(epoch))
        for index in torch.split(order, 8):
            call(teacher, *index.tolist())
    assert sum(model.seen) == 50
    assert len(model.seen) == 7


def test_cache_asks_only_for_the_new_ones() -> None:
    model = Counting()
    teacher = Teacher(model, cache=True)
    first = call(teacher, 1, 2, 3)
    second = call(teacher, 3, 40, 1)
    assert model.seen == [3, 1]
    assert torch.equal(second[[2, 0]], first[[0, 2]])


def test_without_cache_every_batch_is_computed() -> None:
    model = Counting()
    teacher = Teacher(model)
    call(teacher, 1, 2)
    call(teacher, 1, 2, view=-1)
    assert model.seen == [2, 2]


def test_cache_refuses_views_that_do_not_come_back() -> None:
    model = Counting()
    with pytest.raises(ValueError, match="got ones that are drawn anew"):
        call(Teacher(model, cache=True), 1, 2, view=-1)
    assert model.seen == []


def test_each_view_of_a_sample_is_kept() -> None:
    model = Counting()
    teacher = Teacher(model, cache=True)
    shown = {1: torch.randn(2, 3), 2: torch.randn(2, 3)}
    index = torch.tensor([5, 0])
    first = {view: teacher(inputs, index, torch.full((2,), view)) for view, inputs in shown.items()}
    again = {view: teacher(torch.zeros(2, 3), index, torch.full((2,), view)) for view in shown}
    mixed = teacher(torch.zeros(2, 3), index, torch.tensor([2, 1]))
    assert model.seen == [2, 2]
    for view in shown:
        assert torch.equal(first[view], model.net(shown[view]))
        assert torch.equal(again[view], first[view])
    assert torch.equal(mixed, torch.stack([first[2][0], first[1][1]]))


def test_given_outputs_of_several_views() -> None:
    given = [torch.randn(50, 4), torch.randn(50, 4)]
    teacher = Teacher(Counting(), cache=True, outputs=given)
    for view in (1, 2):
        assert torch.equal(call(teacher, 4, 7, view=view), given[view - 1][[4, 7]])


def test_cache_refuses_batches_without_an_index() -> None:
    teacher = Teacher(Counting(), cache=True)
    with pytest.raises(ValueError, match="needs batches with a sample index"):
        teacher(DATA)
    with pytest.raises(ValueError, match="needs batches with a sample index"):
        teacher(DATA, torch.arange(50))


def test_given_outputs_are_what_it_says_and_it_never_runs() -> None:
    model = Counting()
    given = torch.randn(50, 4)
    teacher = Teacher(model, cache=True, outputs=[given])
    assert torch.equal(call(teacher, 4, 49, 0), given[[4, 49, 0]])
    assert model.seen == []
    with pytest.raises(ValueError, match="views that come back"):
        call(teacher, 1, view=-1)
    with pytest.raises(ValueError, match="a batch in view 2, and outputs of 1 views"):
        call(teacher, 1, view=2)


def test_outputs_without_a_cache_are_refused() -> None:
    with pytest.raises(ValueError, match="write cache=true, or leave outputs away"):
        Teacher(Counting(), outputs=[torch.randn(50, 4)])


def test_with_train_bn_norms_take_the_statistics_of_the_batch_and_keep_their_own() -> None:
    model = Counting()
    before = fingerprint(model)
    teacher = Teacher(model, mode="train_bn")
    found = teacher(DATA)
    assert fingerprint(model) == before == teacher.hash
    hidden = model.net[0](DATA)
    mean, deviation = hidden.mean(0), hidden.var(0, unbiased=False)
    torch.testing.assert_close(found, model.net[3]((hidden - mean) / (deviation + 1e-5).sqrt()))
    assert not torch.allclose(found, Teacher(copy.deepcopy(model))(DATA))


def test_a_cache_and_batch_statistics_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="mode is 'eval' or, without a cache, 'train_bn'"):
        Teacher(Counting(), cache=True, mode="train_bn")
    with pytest.raises(ValueError, match="got mode='train'"):
        Teacher(Counting(), mode="train")  # type: ignore[arg-type]


def test_bf16_runs_under_autocast() -> None:
    model = Counting()
    found, exact = Teacher(model, bf16=True)(DATA), Teacher(model)(DATA)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0.05)


def test_methods_that_share_it_let_it_run_once_a_step() -> None:
    model = Counting()
    teacher = Teacher(model)
    teacher.tap(["net.0"])

    def step() -> Step:
        zero = torch.zeros(())
        return Step(inputs=DATA, targets=None, outputs=None, task_loss=zero, progress=0.0, model=model)

    first = step()
    assert teacher.of(first) is teacher.of(first)
    assert len(model.seen) == 1
    teacher.of(step())  # the same inputs, but another step
    assert len(model.seen) == 2
    assert teacher.features["net.0"].shape == (50, 8)
