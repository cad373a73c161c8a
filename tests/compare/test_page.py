import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightning_compress.cli import main
from lightning_compress.compare import fronts
from lightning_compress.compare.command import compare
from lightning_compress.compare.subject import Run, Study, read
from lightning_compress.run.result import Result
from lightning_compress.sweep.spec import StudySpec
from tests.sweep.toy import DEFAULTS, Bench, result_of, run_study

EVIL = "</script><script>window.hacked=1</script><b>&"
SPEC = StudySpec(
    name="tiny",
    objectives={"val/accuracy": "max", "cost/packed_bytes": "min", "cost/latency_ratio": "min"},
    space={"bits": {"low": 2, "high": 8, "int": True}, "sparsity": {"low": 0.1, "high": 0.9}},
    trials=3,
    base=["kind=plain"],
    dense=["bits=32"],
    baselines={"full": ["model.width=1.0"]},
    reference="full",
)


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        self.text += " "

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def figures(self) -> dict[str, Any]:
        found = re.search(r"Object\.entries\((.*)\)\)\n", self.source)
        assert found
        figures: dict[str, Any] = json.loads(found[1])
        return figures


def saved(folder: Path, bits: int, **provenance: str) -> Result:
    result = result_of({**DEFAULTS, "bits": bits}, folder.name)
    result.history = [{"epoch": float(n), "train/loss": 1.0 / bits, "val/accuracy": n / 4} for n in range(3)]
    result.cost |= {"latency_ms": float(bits), "device": "a CPU"}
    result.provenance |= provenance
    result.save(folder)
    return result


def study(folder: Path, spec: StudySpec = SPEC) -> Path:
    run_study(spec, Bench(), folder)
    return folder


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sweeps")
    one = replace(SPEC, report=str(root / "report"))
    return [study(root / "one", one), study(root / "two", replace(one, base=["kind=plain", "seed=6"]))]  # a bit worse


def compared(*paths: Path, folder: Path) -> tuple[str, Page]:
    out = io.StringIO()
    file = compare(paths, folder, Console(file=out, width=160))
    return out.getvalue(), Page(file)


def test_two_runs_on_the_command_line_and_on_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "runs/a", 8, wandb="https://wandb.ai/me/p/runs/a")
    saved(tmp_path / "runs/b", 4, device="a GPU")
    assert main(["compare", "runs/a", "runs/b"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"cost/packed_bytes +25.2 kB +12.7 kB \(-49.6 %\)", said)
    assert "1 settings differ: bits" in said
    assert "written: runs/compare/index.html" in said
    page = Page(tmp_path / "runs/compare/index.html")
    for text in (
        "25.2 kB",
        "(-49.6 %)",
        "bits 8 4",
        "conv 8 / 8 4 / 8",
        "device null a GPU",
        "no address was recorded",
    ):
        assert text in page.text
    hrefs = [attributes.get("href") for tag, attributes in page.tags if tag == "a"]
    assert hrefs == ["https://wandb.ai/me/p/runs/a"]
    assert not [tag for tag, attributes in page.tags if attributes.get("src") or tag == "link"], "it needs no network"
    figures = page.figures()
    assert {trace["name"] for trace in figures["validation"]["data"]} == {"a", "b"}
    (line, _) = figures["validation"]["data"]
    assert (line["x"], line["y"]) == ([1, 2, 3], [0, 0.25, 0.5])
    assert {tag["id"] for name, tag in page.tags if name == "div" and "id" in tag} == set(figures)
    assert main(["compare", "runs/a"]) == 2
    assert "expected two or more" in capsys.readouterr().err


def test_a_record_has_no_curves_and_no_layers(tmp_path: Path) -> None:
    saved(tmp_path / "a", 8)
    saved(tmp_path / "b", 8)
    result = Result.load(tmp_path / "b")
    replace(result, history=[], layers=[]).save(tmp_path / "b")
    _, page = compared(tmp_path / "a", tmp_path / "b", folder=tmp_path)
    assert "Without curves: b." in page.text
    assert "Layers" not in page.text
    assert "Settings of runs that differ None." in page.text


def test_costs_of_two_devices_are_marked(tmp_path: Path) -> None:
    saved(tmp_path / "a", 8)
    other = saved(tmp_path / "b", 8)
    assert "Costs were measured differently" not in compared(tmp_path / "a", tmp_path / "b", folder=tmp_path)[1].text
    replace(other, cost={**other.cost, "device": "a GPU"}).save(tmp_path / "b")
    _, page = compared(tmp_path / "a", tmp_path / "b", folder=tmp_path)
    assert "Costs were measured differently, see measured.device" in page.text


def test_no_text_can_leave_its_place(tmp_path: Path) -> None:
    place = tmp_path / EVIL.replace("/", "_")
    result = saved(place, 8)
    result.history = [{"epoch": 0.0, EVIL: 1.0}]
    replace(result, config={EVIL: 1}, layers=[{"name": EVIL}], error=EVIL, cost={EVIL: 1}).save(place)
    saved(tmp_path / "b", 4)
    _, page = compared(place, tmp_path / "b", folder=tmp_path / "out")
    assert EVIL not in page.source
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert EVIL in page.text


def test_fronts_are_laid_over_each_other_with_a_run(studies: list[Path], tmp_path: Path) -> None:
    saved(tmp_path / "mine", 8)
    said, page = compared(*studies, tmp_path / "mine", folder=tmp_path)
    assert "hypervolume, one scale" in said
    assert "base.seed absent 6" in page.text
    traces = [trace for trace in page.figures()["size"]["data"] if trace["mode"] == "markers"]
    assert [trace["name"] for trace in traces] == ["one", "two", "mine"]
    one, _, mine = read([*studies, tmp_path / "mine"])
    assert isinstance(one, Study)
    assert isinstance(mine, Run)
    assert traces[0]["y"] == [point.values[0] for point in one.record.front]
    assert traces[2]["x"] == [mine.result.get("cost/packed_bytes")]
    assert [trace["x"] for trace in page.figures()["latency"]["data"] if trace["name"] == "mine"] == [[]]


def test_studies_share_one_scale(studies: list[Path]) -> None:
    both = [one for one in read(studies) if isinstance(one, Study)]
    rows = dict(fronts.table(both))
    assert both[0].record.hypervolume.value == pytest.approx(both[1].record.hypervolume.value), "each on its own scale"
    volumes = [float(cell) for cell in rows["hypervolume, one scale"]]
    assert volumes[0] > volumes[1]
    number = len(both[1].record.front)
    assert rows["front points that another front beats"] == [f"0 of {number}", f"{number} of {number}"]
    assert rows["val/accuracy, largest of the front"] == [f"{one.record.front[0].values[0]:.4g}" for one in both]


def test_other_objectives_are_not_drawn_together(studies: list[Path], tmp_path: Path) -> None:
    objectives = {"cost/sparsity": "max", "cost/packed_bytes": "min"}
    other = study(tmp_path / "other", replace(SPEC, objectives=objectives, report=str(tmp_path / "report")))
    said, page = compared(studies[0], other, folder=tmp_path)
    assert "hypervolume" not in said
    assert "not drawn together (one: val/accuracy; other: cost/sparsity)" in page.text
    assert page.figures() == {}
