import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lightning_compress.sweep import plan, publish, record, report
from lightning_compress.sweep.progress import Progress, final_table, shown, size
from lightning_compress.sweep.record import StudyRecord
from lightning_compress.sweep.spec import StudySpec
from lightning_compress.sweep.study import Trial
from lightning_compress.tracking.wandb import Run
from tests.sweep.conftest import MakeBench
from tests.sweep.toy import Bench, run_study

EVIL = "</script><script>window.hacked=1</script><b>&"


def _done(spec: StudySpec, bench: Bench, folder: Path) -> StudyRecord:
    return run_study(spec, bench, folder)[0]


class _Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        self.text += " "

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def _read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.text = " ".join(page.text.split())
    return page


def test_the_page_holds_everything_and_needs_no_network(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    found = _done(spec, bench, tmp_path / "study")
    page = _read(tmp_path / "report/index.html")
    assert not [attributes for tag, attributes in page.tags if attributes.get("src")]
    assert not [attributes for tag, attributes in page.tags if tag == "link"]
    hrefs = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    anchors = {attributes.get("id") for tag, attributes in page.tags if tag == "details"}
    assert hrefs
    assert {href[1:] for href in hrefs} == anchors
    assert sum(tag == "details" for tag, _ in page.tags) == len(found.front)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    for text in (
        "dense: half",
        "sampler tpe, seed 0",
        "trials 0; confirmation 101, 102",
        "abc123 with changes",
        "a CPU, fake 1.0, 1 thread(s), batch 64",
        f"{found.hypervolume.value:.4f} of 1",
        "reference point 1.1",
        "4x1x3x3",
    ):
        assert text in page.text
    reference = next(point for point in found.baselines if point.name == "full")
    for point in found.front:
        assert f"{reference.result.cost['packed_bytes'] / point.result.cost['packed_bytes']:.1f}" in page.text


def test_the_csv_holds_the_front_and_the_baselines(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    found = _done(spec, bench, tmp_path / "study")
    with (tmp_path / "report/front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [point.name for point in (*found.front, *found.baselines)]
    first, point = rows[0], found.front[0]
    assert float(first["val/accuracy"]) == point.values[0] == max(p.values[0] for p in found.points)
    assert float(first["confirmed_mean"]) == pytest.approx(point.values[0] - 0.0035)
    assert float(first["confirmed_sd"]) == pytest.approx(0.001 / 2**0.5)
    assert float(first["test/accuracy"]) == pytest.approx(point.values[0] - 0.01)
    assert int(first["param/bits"]) == point.params["bits"]
    assert first["bits"] == f"W{point.params['bits']}A8"
    half = next(row for row in rows if row["name"] == "half")
    assert float(half["faster"]) == pytest.approx(2)
    assert float(half["smaller"]) == pytest.approx(100_200 / 50_200)


def test_files_of_the_report(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    _done(spec, bench, tmp_path / "study")
    assert (tmp_path / "report/front.png").read_bytes().startswith(b"\x89PNG")
    copies = {path.parent.name for path in (tmp_path / "report/results").glob("*/result.json")}
    assert copies == set(bench.names)
    copy = json.loads((tmp_path / "report/results/trial-0/result.json").read_text())
    assert copy == json.loads((tmp_path / "study/runs/trial-0/result.json").read_text())


def test_names_of_the_user_never_become_markup(spec: StudySpec, make_bench: MakeBench, tmp_path: Path) -> None:
    def fails(config: dict[str, Any]) -> dict[str, float]:
        if config["wandb"]["name"] == "trial-3":
            raise ValueError(EVIL)
        return {}

    hostile = replace(
        spec,
        space={**spec.space, "kind": [EVIL, "$x_{2}$"]},
        baselines={EVIL: ["model.width=0.5"], "full": ["model.width=1.0"]},
    )
    _done(hostile, make_bench(fails), tmp_path / "study")
    page = _read(tmp_path / "report/index.html")
    text = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert EVIL in page.text
    assert "</script><script>window.hacked" not in text
    assert sum(tag == "b" for tag, _ in page.tags) == text.count('<div class="card"><b>')


def test_the_figure_shows_each_point_where_it_lies(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    found = _done(spec, bench, tmp_path / "study")
    traces = {trace.name: trace for trace in report.front_figure(found, report.SIZE).data}
    assert set(traces) == {"other trials", "best at this cost", "front", "dense baselines", "teacher"}
    assert list(traces["front"].x) == [point.result.cost["packed_bytes"] for point in found.front]
    assert list(traces["front"].y) == [point.values[0] for point in found.front]
    assert len(traces["front"].x) + len(traces["other trials"].x) == 8
    assert list(traces["dense baselines"].x) == [50_200, 100_200]
    assert traces["dense baselines"].mode == "lines+markers"
    assert "param/sparsity: 0.5" in "".join([*traces["front"].text, *traces["other trials"].text])
    best = list(traces["best at this cost"].y)
    assert best == sorted(best)
    latency = {trace.name: trace for trace in report.front_figure(found, report.LATENCY).data}
    assert list(latency["dense baselines"].x) == [0.5, 1.0]
    assert list(latency["teacher"].x) == [2.0]
    bars = report.importance_figure(replace(found, importances={"big": 0.75, "small": 0.25})).data[0]
    assert list(bars.y) == ["small", "big"]
    assert list(bars.x) == [0.25, 0.75]


def test_stopped_trials_are_told_apart(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    found = _done(spec, bench, tmp_path / "study")
    *front, stopped, beaten = found.front
    points = (*front, replace(stopped, epochs=3), beaten)
    traces = {
        t.name: t for t in report.front_figure(replace(found, points=points, front=tuple(front)), report.SIZE).data
    }
    assert list(traces["stopped early, as they were then"].y) == [stopped.values[0]]
    assert list(traces["other trials"].y) == [beaten.values[0]]


def test_a_study_without_teacher_baselines_or_confirmation(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    bare = replace(spec, teacher=None, baselines={}, reference=None, confirm_seeds=[], test=False, trials=2)
    found = _done(bare, bench, tmp_path / "study")
    assert bench.names == ["trial-0", "trial-1"]
    assert record.row(found, found.front[0])["smaller"] == pytest.approx(
        100_200 / found.front[0].result.cost["packed_bytes"]
    )
    assert "confirmation none" in _read(tmp_path / "report/index.html").text
    assert (tmp_path / "report/front.png").exists()


def test_a_trial_that_a_dense_net_beats_is_marked(spec: StudySpec, make_bench: MakeBench, tmp_path: Path) -> None:
    def bad(config: dict[str, Any]) -> dict[str, float]:
        return {"val/accuracy": 0.5} if config["wandb"]["job_type"] == "trial" else {}

    alike = replace(spec, baselines={"tiny": ["model.width=0.001"], "full": ["model.width=1.0"]})
    found = _done(alike, make_bench(bad), tmp_path / "study")
    beaten = [point for point in found.front if found.beaten_by(point) == ["tiny"]]
    assert beaten
    assert "a dense net is better: tiny" in _read(tmp_path / "report/index.html").text
    out = io.StringIO()
    Console(file=out, width=200).print(final_table(found))
    assert out.getvalue().count("beaten by dense tiny") == len(beaten)


def test_spread_is_the_sample_deviation() -> None:
    assert record.spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert record.bits([]) == ""


def test_a_terminal_shows_bar_counts_and_front(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=40)
    run_study(spec, bench, tmp_path / "study", console=console)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "/11" in text
    assert "trials 8 done, 0 stopped, 0 failed" in text
    assert "cost/packed_bytes" in text
    assert "\x1b[" in out.getvalue()


def test_a_dumb_terminal_gets_plain_lines() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, _environ={"TERM": "dumb"})
    with Progress(console) as progress:
        progress.expect(1)
        progress.state({"done": 1, "stopped": 0, "failed": 0}, [("trial 0", {"val/accuracy": 0.5})])
        progress.done("trial [bold]0[/bold] " + "x" * 200)
    assert out.getvalue() == f"[1/1] trial [bold]0[/bold] {'x' * 200} | trials 1 done, 0 stopped, 0 failed\n"


def test_numbers_as_people_read_them() -> None:
    assert [size(n) for n in (0, 999, 1000, 1_500_000, 2e12)] == ["0 B", "999 B", "1 kB", "1.5 MB", "2e+03 GB"]
    assert shown("cost/latency_ratio", 0.123456) == "0.1235"
    assert shown("x", None) == ""


def test_the_plan_counts_and_measures(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    unknown = plan.plan(spec, tmp_path / "study")
    assert unknown.runs == {"teacher": 1, "baseline": 2, "trial": 8, "confirmation": (2 + 2) * 2}
    assert unknown.seconds is None
    assert "write expected_seconds" in unknown.text()
    pair = plan.plan(replace(spec, expected_seconds=6.0, launch={"workers": 2}), tmp_path / "study")
    assert pair.text().splitlines()[1] == "about 0.95 minutes with 2 at once (6 s per run, the study's guess)"
    guessed = plan.plan(replace(spec, expected_seconds=6.0, expected_megabytes=2.0), tmp_path / "study")
    assert (guessed.seconds, guessed.disk) == (19 * 6.0, 38e6)
    assert guessed.text().splitlines()[1] == "about 1.9 minutes, 38 MB of disk (6 s per run, the study's guess)"
    assert not (tmp_path / "study").exists()
    found = _done(replace(spec, trials=4, confirm_seeds=[], test=False), bench, tmp_path / "study")
    measured = plan.plan(spec, tmp_path / "study")
    num_runs = 11 + 2 * (len(found.front) + 2)
    assert (sum(measured.runs.values()), measured.num_done) == (num_runs, 7)
    assert measured.seconds == pytest.approx(1.5 * (num_runs - 7))
    assert measured.disk is not None
    assert 1000 < measured.disk / (num_runs - 7) < 20_000


class _Log:
    """What a W&B run was given."""

    url = None

    def __init__(self) -> None:
        self.tables: dict[str, tuple[list[str], list[list[Any]]]] = {}
        self.figures: list[str] = []
        self.artifacts: dict[str, tuple[set[str], dict[str, Any]]] = {}
        self.numbers: dict[str, float] = {}

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, metrics: dict[str, float]) -> None:
        pass

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.tables[name] = (columns, rows)

    def plotly(self, name: str, figure: object) -> None:
        self.figures.append(name)

    def artifact(self, path: Path, name: str, **rest: Any) -> None:
        self.artifacts[name] = ({file.name for file in path.iterdir()}, rest)

    def summary(self, values: dict[str, float]) -> None:
        self.numbers = dict(values)


def test_the_study_run_of_wandb(spec: StudySpec, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, _Log]] = []

    def log_run(labels: Any, **_: Any) -> "_Log":
        opened.append((labels, _Log()))
        return opened[-1][1]

    monkeypatch.setattr(publish, "log_run", log_run)
    found = _done(spec, bench, tmp_path / "study")
    _done(spec, bench, tmp_path / "study")
    ((labels, log),) = opened
    identity = record.read_spec(tmp_path / "study")[1]
    assert (labels.id, labels.group, labels.job_type) == (f"{identity}-study", "tiny", "study")
    columns, rows = log.tables["pareto"]
    assert len(rows) == len(found.front) + 2
    assert all(len(row) == len(columns) for row in rows)
    assert [row[columns.index("name")] for row in rows][:1] == [found.front[0].name]
    assert log.figures == ["pareto_size", "pareto_latency"]
    assert set(log.artifacts) == {f"tiny-{point.run}" for point in found.front}
    files, rest = log.artifacts[f"tiny-{found.front[0].run}"]
    assert files == {"model.lcz", "model.onnx", "result.json"}
    assert rest["aliases"] == ["pareto"]
    assert rest["metadata"]["val/accuracy"] == found.front[0].values[0]
    assert rest["metadata"]["params"] == found.front[0].params
    assert log.numbers["hypervolume"] == found.hypervolume.value
    assert log.numbers["trials/done"] == 8
    assert not set(log.numbers) & {"pareto", *log.figures}
    assert set(vars(_Log)) - {"__enter__", "__exit__"} >= {"table", "plotly", "artifact", "summary"} <= set(dir(Run))


def test_a_folder_without_a_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no study"):
        record.collect(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        record.collect(tmp_path)


def test_counts_are_by_how_a_trial_ended(spec: StudySpec, bench: Bench, tmp_path: Path) -> None:
    found = _done(spec, bench, tmp_path / "study")
    trials = (*found.trials, Trial(90, {}, "failed"), Trial(91, {}, "stopped"))
    counted = replace(found, trials=trials)
    assert [counted.count(state) for state in ("done", "stopped", "failed")] == [8, 1, 1]
