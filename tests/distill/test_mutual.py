import math
from typing import Any

import pytest
import torch
from scipy.special import rel_entr, softmax
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_compress.core.compressor import Compressor, NoEffectError
from lightning_compress.core.method import Step
from lightning_compress.core.schedule import Linear, OneShot
from lightning_compress.distill.mutual import Mutual
from lightning_compress.models.shared_trunk import SharedTrunk
from lightning_compress.run.config import CONF

TARGETS = torch.tensor([0, 2, 1, 1, 2])


def nets(count: int) -> list[nn.Linear]:
    return [nn.Linear(4, 3) for _ in range(count)]


def a_step(student: nn.Module, progress: float = 0.0) -> Step:
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    outputs = student(inputs)
    return Step(inputs, TARGETS, outputs, F.cross_entropy(outputs, TARGETS), progress, student)


def kl(own: Tensor, other: Tensor, temperature: float = 1.0) -> float:
    q, p = (softmax(logits.detach().double().numpy() / temperature, axis=1) for logits in (own, other))
    return float(temperature**2 * rel_entr(p, q).sum(1).mean())


def test_two_networks_by_hand() -> None:
    class Says(nn.Module):
        def __init__(self, *logits: float) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([logits]))

        def forward(self, _inputs: Tensor) -> Tensor:
            return self.logits

    student, peer = Says(0.0, 0.0), Says(math.log(3.0), 0.0)
    terms = Mutual(peer).loss(Step(None, torch.tensor([1]), student(X := torch.ones(1)), X.sum(), 0.0, student))
    # Of the student 1/2, 1/2; of the peer 3/4, 1/4, and the label is its 1/4.
    assert terms["mutual"].item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert terms["peer1"].item() == pytest.approx(math.log(4) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2))


def test_three_networks_learn_from_the_mean_of_the_others() -> None:
    student, *peers = nets(3)
    step = a_step(student, progress=0.5)
    terms = Mutual(peers, temperature=Linear(first=1.0, last=3.0), weight=Linear(last=0.6)).loss(step)
    a, b, c = step.outputs, *(peer(step.inputs) for peer in peers)
    assert terms.keys() == {"mutual", "peer1", "peer2"}
    assert terms["mutual"].item() == pytest.approx(0.3 * (kl(a, b, 2.0) + kl(a, c, 2.0)) / 2, rel=1e-5)
    for name, own, others in (("peer1", b, (a, c)), ("peer2", c, (a, b))):
        apart = sum(kl(own, other, 2.0) for other in others) / 2
        assert terms[name].item() == pytest.approx(F.cross_entropy(own, TARGETS).item() + 0.3 * apart, rel=1e-5)


def test_heads_learn_from_those_of_their_names() -> None:
    student, peer = (SharedTrunk(nn.Linear(4, 6), {"a": nn.Linear(6, 3), "b": nn.Linear(6, 2)}) for _ in range(2))
    inputs, targets = torch.randn(5, 4), torch.tensor([[0, 1], [2, 0], [1, 1], [0, 0], [2, 1]])
    ours, theirs = student(inputs), peer(inputs)
    terms = Mutual(peer, weight=0.5).loss(Step(inputs, targets, ours, torch.ones(()), 0.0, student))
    assert terms["mutual"].item() == pytest.approx(0.5 * sum(kl(ours[head], theirs[head]) for head in "ab"), rel=1e-5)
    labels = sum(F.cross_entropy(theirs[head], targets[:, place]).item() for place, head in enumerate("ab"))
    apart = sum(kl(theirs[head], ours[head]) for head in "ab")
    assert terms["peer1"].item() == pytest.approx(labels + 0.5 * apart, rel=1e-5)
    with pytest.raises(ValueError, match=r"got {'a': \(5, 3\), 'b': \(5, 2\)} of the student and \(5, 3\) of a peer"):
        Mutual(nn.Linear(4, 3)).loss(Step(inputs, targets, ours, torch.ones(()), 0.0, student))


def test_each_term_moves_its_own_network_alone() -> None:
    student, *peers = nets(3)
    terms = Mutual(peers).loss(a_step(student))
    for own, term in zip((student, *peers), terms.values(), strict=True):
        gradients = torch.autograd.grad(
            term, [net.weight for net in (student, *peers)], allow_unused=True, retain_graph=True
        )
        moved = [net for net, gradient in zip((student, *peers), gradients, strict=True) if gradient is not None]
        assert moved == [own]


def test_all_networks_learn_and_come_together() -> None:
    student, *peers = nets(3)
    method = Mutual(peers, weight=3.0)
    optimizer = torch.optim.SGD([*student.parameters(), *method.param_groups()[0]["params"]], lr=0.1)
    history = []
    for _ in range(60):
        step = a_step(student)
        terms = method.loss(step)
        optimizer.zero_grad()
        torch.autograd.backward(sum(terms.values(), step.task_loss))
        optimizer.step()
        history.append({name: float(term.detach()) for name, term in terms.items()})
    assert history[-1]["mutual"] < 0.2 * history[0]["mutual"]
    assert all(history[-1][name] < 0.8 * history[0][name] for name in ("peer1", "peer2"))


def test_peers_train_and_are_in_the_checkpoint() -> None:
    peer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval().requires_grad_(False)
    student = nn.Linear(4, 3)
    compressor = Compressor([Mutual(peer)])
    assert compressor.attach(student, None) is student
    compressor.loss(compressor.step((torch.randn(5, 4), TARGETS), student(torch.randn(5, 4)), torch.ones(1), student))
    assert peer.training
    assert int(peer.state_dict()["1.num_batches_tracked"]) == 1
    state = {key for key in compressor.state_dict() if "_extra_state" not in key}
    assert state == {f"methods.0.peers.0.{key}" for key in peer.state_dict()}
    assert {id(p) for group in compressor.param_groups() for p in group["params"]} == {id(p) for p in peer.parameters()}


def test_labels_by_another_loss() -> None:
    student, peer = nets(2)
    step = a_step(student)
    method = Mutual(peer, weight=0.0, task_loss=lambda outputs, targets: outputs.sum() * 0 + 7.0)
    assert method.loss(step)["peer1"].item() == 7.0
    with pytest.raises(ValueError, match=r"Mutual: task_loss: no 'cross_entopy'.*did you mean 'cross_entropy'"):
        Mutual(peer, task_loss="cross_entopy")


def run(method: Mutual, student: nn.Module, *, detached: bool = False) -> None:
    compressor = Compressor([method])
    compressor.attach(student, None)
    step = a_step(student)
    with torch.set_grad_enabled(not detached):
        compressor.loss(a_step(student) if detached else step)
    compressor.update(student)


def test_no_effect_is_an_error() -> None:
    student, twin = nets(2)
    twin.load_state_dict(student.state_dict())
    with pytest.raises(NoEffectError, match=r"exactly zero: do the peers start from the student's own weights\? Give"):
        run(Mutual(twin), student)
    with pytest.raises(NoEffectError, match="carries no gradient"):
        run(Mutual(nn.Linear(4, 3)), student, detached=True)
    run(Mutual(nn.Linear(4, 3)), student)


def test_no_alarm_while_the_weight_is_zero() -> None:
    student, peer = nets(2)
    method = Mutual(peer, weight=OneShot(last=0.5, at=0.5))
    assert not method.settled(0.9)  # nothing computed yet
    method.loss(a_step(student))
    assert [method.settled(p) for p in (0.0, 0.49, 0.5)] == [False, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peers": []}, "needs one peer at least"),
        ({"temperature": Linear(first=4.0, last=-1.0)}, "temperature must be positive, got -1"),
        ({"weight": -0.5}, "weight must be 0 or more, got -0.5"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mutual(**{"peers": nn.Linear(4, 3), **options})


def test_networks_must_be_apart_and_alike_in_classes() -> None:
    student, peer = nets(2)
    for method in (Mutual(student), Mutual([peer, nn.Sequential(peer)])):
        with pytest.raises(ValueError, match="share parameters; give each peer a network of its own"):
            method.attach(student, None)
    with pytest.raises(ValueError, match=r"got \(5, 3\) of the student and \(5, 7\) of a peer"):
        Mutual(nn.Linear(4, 7)).loss(a_step(student))


@pytest.mark.parametrize(("group", "name"), [("mutual", "dml"), ("own_teacher", "classifiers"), ("reuse", "simkd")])
def test_a_preset_says_where_it_comes_from(group: str, name: str) -> None:
    first, second, *_ = (CONF / group / f"{name}.yaml").read_text().splitlines()
    assert first == f"# @package methods.{group}"
    assert second.startswith("# ")
    assert "arXiv" in second
