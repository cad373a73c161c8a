from dataclasses import replace

import pytest

from lightning_compress.sweep import pick
from lightning_compress.sweep.record import StudyRecord, row
from lightning_compress.sweep.spec import StudySpec
from tests.sweep.toy import Bench, run_study


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    folder = tmp_path_factory.mktemp("sweeps")
    study = StudySpec(
        name="tiny",
        objectives={"val/accuracy": "max", "cost/packed_bytes": "min", "cost/latency_ratio": "min"},
        space={"bits": {"low": 2, "high": 8, "int": True}, "sparsity": {"low": 0.1, "high": 0.9}},
        trials=6,
        dense=["bits=32"],
        baselines={"half": ["model.width=0.5"], "full": ["model.width=1.0"]},
        reference="full",
        confirm_seeds=[101],
        test=True,
        report=str(folder / "report"),
    )
    return run_study(study, Bench(), folder / "study")[0]


def _limits(found: StudyRecord, **asked: str) -> list[pick.Limit]:
    return pick.limits(found.spec, {f"--{name.replace('_', '-')}": text for name, text in asked.items()})


def test_the_best_of_those_within_is_chosen(found: StudyRecord) -> None:
    assert len(found.front) > 2
    for place, point in enumerate(found.front):
        number = point.result.cost["packed_bytes"]
        choice = pick.pick(found, _limits(found, max_bytes=str(number)))
        within = [p for p in found.front if p.result.cost["packed_bytes"] <= number]
        assert choice.point is max(within, key=lambda p: p.values[0])
        assert choice.fitting == len(within) == len(found.front) - place
    assert pick.pick(found, []).point is found.front[0]


def test_of_equal_quality_the_smaller_one_is_chosen(found: StudyRecord) -> None:
    first, second, *_ = found.front
    assert first.result.cost["packed_bytes"] > second.result.cost["packed_bytes"]
    equal = replace(second, values=(first.values[0], *second.values[1:]))
    assert pick.pick(replace(found, front=(first, equal)), []).point is equal


@pytest.mark.parametrize(
    ("option", "text", "column", "bound"),
    [
        ("--max-bytes", "20000", "packed_bytes", 20_000),
        ("--max-bytes", "1.5 MB", "packed_bytes", 1_500_000),
        ("--max-bytes", "20KB", "packed_bytes", 20_000),
        ("--max-latency", "2", "latency_ms", 2),
        ("--max-latency", "0.5ms", "latency_ms", 0.5),
        ("--max-latency", ".5x", "latency_ratio", 0.5),
        ("--min-accuracy", "0.97", "val/accuracy", 0.97),
        ("--min-accuracy", "97%", "val/accuracy", 0.97),
    ],
)
def test_limits_as_people_write_them(option: str, text: str, column: str, bound: float, spec: StudySpec) -> None:
    (limit,) = pick.limits(spec, {option: text})
    assert (limit.column, limit.most) == (column, option != "--min-accuracy")
    assert limit.bound == pytest.approx(bound)
    assert limit.excess({column: bound}) == 0


@pytest.mark.parametrize(
    ("option", "text", "said"),
    [
        ("--max-bytes", "lots", "expected a number above 0, as 20000 or 20kB, got 'lots'"),
        ("--max-bytes", "0", "above 0"),
        ("--max-bytes", "-5", "got '-5'"),
        ("--max-bytes", "nan", "got 'nan'"),
        ("--max-latency", "3 miles", "as 0.5ms or 0.5x"),
        ("--min-accuracy", "97", "expected a share up to 1, as 0.97 or 97%, got '97'"),
    ],
)
def test_limits_that_are_none(option: str, text: str, said: str, spec: StudySpec) -> None:
    with pytest.raises(ValueError, match=said):
        pick.limits(spec, {option: text})


def test_an_accuracy_is_not_asked_of_a_loss(spec: StudySpec) -> None:
    lossy = replace(spec, objectives={"val/loss": "min"})
    with pytest.raises(ValueError, match="the quality of this study is val/loss, which is to be low"):
        pick.limits(lossy, {"--min-accuracy": "0.9"})


def test_the_limit_that_excludes_all_is_named(found: StudyRecord) -> None:
    least = min(found.front, key=lambda point: point.result.cost["packed_bytes"])
    with pytest.raises(ValueError) as error:
        pick.pick(found, _limits(found, max_bytes="1", min_accuracy="1%"))
    text = str(error.value)
    assert f"none of the {len(found.front)} front points of tiny" in text
    assert "--max-bytes 1 alone excludes all (the least is packed_bytes" in text
    assert f", {least.name})" in text
    assert "--min-accuracy 1% alone" not in text
    assert "val/accuracy" not in text.split("Nearest")[1], "only what is missed is told of a near miss"
    assert text.split("Nearest misses: ")[1].startswith(least.name)


def test_limits_that_exclude_each_other(found: StudyRecord) -> None:
    best, smallest = found.front[0], found.front[-1]
    bound = str(smallest.result.cost["packed_bytes"])
    with pytest.raises(ValueError) as error:
        pick.pick(found, _limits(found, max_bytes=bound, min_accuracy=str(best.values[0])))
    assert f"each of --max-bytes {bound}, --min-accuracy {best.values[0]} can be met, but not together" in str(
        error.value
    )
    assert f"{smallest.name} with val/accuracy" in str(error.value)


def test_what_is_told_of_a_choice(found: StudyRecord) -> None:
    choice = pick.pick(found, [])
    numbers = pick.told(found, choice)
    assert choice.numbers == row(found, choice.point)
    assert set(numbers) == {"val/accuracy", "on fresh seeds", "test/accuracy", "packed file", "latency"}
    assert "of dense full's, on a CPU, fake 1.0, 1 thread(s), batch 64" in numbers["latency"]
    better = replace(found.baselines[0], values=(1.0, 0.0, 0.0))
    beaten = replace(found, baselines=(better, *found.baselines[1:]))
    assert pick.told(beaten, pick.pick(beaten, []))["mind"] == "nowhere better than the dense net half"
