"""A table's file: what it gives, and what it says of each mistake."""

from pathlib import Path
from typing import Any

import pytest

from lightning_compress.tables.schema import every, find, load
from tests.tables.conftest import Change, Make


def test_a_table_is_read_with_its_defaults(make: Make) -> None:
    spec = make()
    assert (spec.name, spec.selection, spec.overrides) == ("digits", "last", ())
    pruned = spec.rows["pruned"]
    assert (pruned.seeds, pruned.overrides, pruned.needs) == ((0, 1, 2), ("epochs=3",), "cpu")
    assert pruned.published["error"].n == 5
    assert spec.rows["same"].runs_of == "pruned"
    assert spec.claims[0].least == 0.1


def test_a_column_scales_a_number_or_a_ratio_of_two(make: Make) -> None:
    columns = make().columns
    numbers = {"test/accuracy": 0.98, "cost/dense_bytes": 1000.0, "cost/packed_bytes": 50.0}
    assert columns["error"].value(numbers) == pytest.approx(2.0)
    assert columns["smaller"].value(numbers) == 20.0
    with pytest.raises(ValueError, match="'test/accuracy' is not in the numbers of the run: did you mean 'val/accu"):
        columns["error"].value({"val/accuracy": 0.9})
    with pytest.raises(ValueError, match="column smaller: cost/packed_bytes is 0"):
        columns["smaller"].value({**numbers, "cost/packed_bytes": 0.0})


def _cell(**changes: Any) -> Change:
    return lambda table: table["rows"]["dense"]["published"]["error"].update(changes)


def _row(name: str = "pruned", **changes: Any) -> Change:
    return lambda table: table["rows"][name].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.update(colums={}), "key 'colums' is not in .*did you mean 'columns'"),
        (lambda table: table.pop("paper"), "the table: paper is missing"),
        (lambda table: table.update(selection="best"), "selection must be last or validation; got 'best'"),
        (lambda table: table["columns"]["error"].update(better="less"), "better must be higher or lower; got 'less'"),
        (lambda table: table["columns"]["error"].pop("metric"), "column error: metric is missing"),
        (lambda table: table["columns"]["error"].update(scale=True), "scale must be a number; got True"),
        (lambda table: table["rows"].update({"Big": {"title": "x"}}), "row Big: a row's name has a-z"),
        (lambda table: table["claims"][0].update(worse="prune"), "claim 1: worse 'prune' .*did you mean 'pruned'"),
        (_row(sedes=[0]), "row pruned: key 'sedes' .*did you mean 'seeds'"),
        (_row(seeds=[0, 0]), "row pruned: seeds must be a list of different whole numbers"),
        (_row(seeds=[]), "row pruned: seeds is missing: write a list such as"),
        (_row(needs="tpu"), "needs must be one of cpu, gpu, data; got 'tpu'"),
        (_row(overrides=["epochs"]), "overrides must be a list of different overrides like epochs=3"),
        (_row(experiment="hinton2015/hart"), "experiment 'hinton2015/hart' .*did you mean 'hinton2015/hard'"),
        (_row(baseline="dens"), "baseline 'dens' is not in the rows: did you mean 'dense'"),
        (_row(runs_of="dense"), "row pruned: write experiment or runs_of, not both"),
        (_row("same", runs_of="cited"), "runs_of 'cited' has no experiment of its own"),
        (_row("same", seeds=[1]), "row same: seeds and overrides go with an experiment"),
        (_row("cited", published={}), "published must be a mapping by name, not empty"),
        (lambda table: table["rows"]["cited"].pop("published"), "row cited: a row without experiment or runs_of is"),
        (_row(published={"eror": {}}), "row pruned: published 'eror' is not in the columns: did you mean 'error'"),
        (_cell(confidence="NF"), "confidence must be one of .*got 'NF' .nothing is written for what is not known"),
        (_cell(value="NF"), "row dense, error: value must be a number; got 'NF'"),
        (_cell(source=""), "row dense, error: source must be a text; got ''"),
        (lambda t: t["rows"]["dense"]["published"]["error"].pop("source"), "row dense, error: source is missing"),
        (_cell(n=0), "n must be a count from 1 up; got 0"),
        (_cell(at_most=1, within=2), "row dense, error: write one of at_most and within, not both"),
    ],
)
def test_mistakes_are_named(make: Make, change: Change, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(change)
    assert "digits.yaml: " in str(caught.value)


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("title: a\ntitle: b\n")
    with pytest.raises(ValueError, match="key 'title' is written twice"):
        load(path)


def test_a_table_is_found_by_name_or_path(make: Make, tmp_path: Path) -> None:
    spec = make()
    assert find("digits", tmp_path) == find(str(tmp_path / "digits.yaml")) == tmp_path / "digits.yaml"
    assert every(tmp_path) == [spec]
    with pytest.raises(FileNotFoundError, match=r"'digit' is not in .*did you mean 'digits'"):
        find("digit", tmp_path)


def test_experiments_of_other_folders_count(make: Make, tmp_path: Path) -> None:
    make(lambda table: table["rows"].pop("cited"))
    path = tmp_path / "digits.yaml"
    path.write_text(path.read_text().replace("hinton2015/hard", "own/hard"))
    (tmp_path / "experiments/own").mkdir(parents=True)
    (tmp_path / "experiments/own/hard.yaml").write_text("name: own/hard\n")
    assert load(path, [tmp_path]).rows["dense"].experiment == "own/hard"
