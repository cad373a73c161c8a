from dataclasses import replace

from lightning_compress.compare import differences
from lightning_compress.run.result import Result


def result(**config: object) -> Result:
    return Result(name="a", config=config)


def test_where_things_lie_and_what_is_off_is_no_difference() -> None:
    one = result(seed=0, data={"source": "mnist", "root": "here"}, methods={"prune": None}, wandb={"mode": "online"})
    other = result(seed=0, data={"source": "mnist", "root": "there"}, methods={}, wandb={"mode": "offline"})
    assert differences.differing([differences.settings(one), differences.settings(other)]) == []
    pruned = result(seed=0, data={"source": "mnist"}, methods={"prune": {"sparsity": 0.5, "layers": None}})
    assert differences.differing([differences.settings(one), differences.settings(pruned)]) == [
        ("methods.prune.layers", ["absent", "null"]),
        ("methods.prune.sparsity", ["absent", "0.5"]),
    ]


def test_numbers_stand_in_order_and_are_held_against_the_first() -> None:
    one = Result(name="a", metrics={"val/accuracy": 0.5, "train/loss": 1.0}, cost={"sparsity": 0.0, "runtime": "x"})
    other = replace(one, metrics={"val/accuracy": 0.75, "test/accuracy": 0.7}, cost={"sparsity": 0.9}, wall_seconds=3.0)
    rows = differences.side_by_side([differences.numbers(one), differences.numbers(other)])
    assert [name for name, _ in rows] == [
        *("test/accuracy", "val/accuracy", "train/loss", "cost/sparsity", "wall_seconds", "train_flops"),
    ]
    assert dict(rows)["test/accuracy"] == [("", ""), ("0.7", "")]
    assert dict(rows)["val/accuracy"] == [("0.5", ""), ("0.75", "+0.25")]
    assert dict(rows)["cost/sparsity"] == [("0", ""), ("0.9", "+0.9")]
    assert dict(rows)["train_flops"] == [("0", ""), ("0", "=")]
    assert dict(rows)["wall_seconds"] == [("0", ""), ("3", "+3")], "nothing is a percentage of 0"


def test_layers_meet_by_name() -> None:
    conv = {"name": "conv", "weight_bits": 4, "activation_bits": None, "sparsity": 0.5, "bytes": 1200}
    one, other = Result(name="a", layers=[conv]), Result(name="b", layers=[{**conv, "weight_bits": 8}, {"name": "fc"}])
    assert differences.layers([one, other]) == [
        ("conv", [("4 / null", "50.0%", "1.2 kB"), ("8 / null", "50.0%", "1.2 kB")]),
        ("fc", [("", "", ""), ("null / null", "0.0%", "0 B")]),
    ]


def test_versions_and_what_costs_were_measured_with_may_differ() -> None:
    known = {"commit": "a" * 40, "dirty": True, "time": "now", "versions": {"torch": "2.13", "numpy": "2.4"}}
    one = Result(name="a", provenance=known, cost={"device": "a CPU", "params": 3})
    other = replace(one, provenance={**known, "time": "later", "versions": {"torch": "2.12", "numpy": "2.4"}})
    other.cost = {"device": "another CPU", "params": 4}
    assert differences.differing([differences.surroundings(one), differences.surroundings(other)]) == [
        ("measured.device", ["a CPU", "another CPU"]),
        ("versions.torch", ["2.13", "2.12"]),
    ]
    assert differences.origin(one)["commit"] == "aaaaaaaaaaaa with changes"
    failed = Result(name="a", status="failed", error="out of memory")
    assert differences.origin(failed)["status"] == "failed: out of memory"
    assert differences.origin(failed)["commit"] == "none"
