"""Smoke runs: the real experiments on made-up pictures; what cannot run fails by name."""

from pathlib import Path

from lightning_compress.launch.inline import Inline
from lightning_compress.run.config import compose
from lightning_compress.tables.smoke import shrunk, smoke
from tests.tables.conftest import Make


def test_rows_pass_and_fail_by_name(make: Make) -> None:
    taught = ["model@teacher.model=mlp", "distill=kl", "quantize=affine", "teacher.weights=nowhere.pt"]
    spec = make(
        lambda table: table["rows"].update(
            taught={**table["rows"]["dense"], "overrides": taught, "needs": "gpu"},
            broken={**table["rows"]["dense"], "overrides": ["prune=gradual", "methods.prune.select=nowhere"]},
        )
    )
    said: list[str] = []
    assert smoke([spec], Inline(), said.append) == ["digits/broken"]
    assert [line.split(",")[0] for line in said[:3]] == [f"pass  digits/{row}" for row in ("dense", "pruned", "taught")]
    assert said[3].startswith("FAIL  digits/broken: ")
    assert "nowhere" in said[3]


def test_spoken_words_are_made_up_too(make: Make) -> None:
    spec = make(
        lambda table: table["rows"].update(
            words={**table["rows"]["dense"], "experiment": "hello_edge/keywords"},
            digits={**table["rows"]["dense"], "experiment": "fsdd/ds_cnn_dense"},
        )
    )
    assert smoke([spec], Inline(), print, ["words", "digits"]) == []


def test_a_run_is_cut_short_and_stays_what_it_is(tmp_path: Path) -> None:
    config = compose(["experiment=prune/resnet20", "data=cifar100", "quantize=ptq", "weights=nowhere.pt"])
    tiny = shrunk(config, tmp_path / "paper")
    assert [phase["epochs"] for phase in tiny["phases"]] == [1, 1]
    assert [phase["methods"] for phase in tiny["phases"]] == [phase["methods"] for phase in config["phases"]]
    assert tiny["methods"]["prune"] == config["methods"]["prune"]
    assert tiny["methods"]["quantize"]["adaround"] == 2
    assert tiny["weights"] is None
    assert tiny["model"] == config["model"]
    assert tiny["data"]["augment"] == config["data"]["augment"]
    assert tiny["data"]["label_column"] == "fine_label"
    assert config["weights"] == "nowhere.pt", "the configuration itself is left alone"
