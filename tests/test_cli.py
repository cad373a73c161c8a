import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_compress
from lightning_compress.arguments import EXAMPLES
from lightning_compress.cli import main
from lightning_compress.export import openvino
from lightning_compress.run.result import Result
from lightning_compress.sweep.spec import StudySpec
from tests.launch.jobs import train_until_stopped

TINY = ["model.width=0.25", "epochs=1", "measure.latency=false", "wandb.mode=disabled"]


@pytest.mark.parametrize("command", ["train", "sweep", "export", "measure", "report", "pick"])
def test_help_teaches_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"\n  lightning-compress {command} " in capsys.readouterr().out


def test_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command, example in EXAMPLES.items():
        assert command in text
        assert example.splitlines()[0].split()[0] in text


def test_the_examples_of_train_compose(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in EXAMPLES["train"].splitlines() if line.startswith("  lightning-compress train")]
    assert len(lines) == 3
    for _, command, *arguments in lines:
        if not any("my_package" in argument for argument in arguments):
            assert main([command, *arguments, "--show"]) == 0
    assert '"epochs"' in capsys.readouterr().out


def test_train_shows_its_numbers_and_returns_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "name=first"]) == 0
    out = capsys.readouterr().out
    assert "W&B is off." in out
    assert "val/accuracy" in out
    assert "packed_bytes" in out
    stamp = (tmp_path / "runs/first/result.json").stat().st_mtime_ns
    assert main(["train", "--out", "runs/first", *TINY, "name=first"]) == 0, "options may stand before the overrides"
    assert (tmp_path / "runs/first/result.json").stat().st_mtime_ns == stamp
    assert capsys.readouterr().out.count("val/accuracy") == 1
    assert main(["export", "runs/first/model.lcz", "--to", "m.onnx"]) == 0
    (tmp_path / "n.onnx").write_bytes((tmp_path / "m.onnx").read_bytes())
    capsys.readouterr()
    assert main(["measure", "m.onnx", "n.onnx", "--rounds", "3", "--batch-size", "2"]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "onnxruntime" in table
    assert "n.onnx" in table
    assert "batch 2, 1 thread(s), 3 rounds" in table
    assert "fastest for n.onnx: onnxruntime 1." in table
    assert "not here" not in table
    few = ["--rounds", "3", "--batch-size", "2", "--runtimes", "onnxruntime,torch/eager,tensorrt/x"]
    assert main(["measure", "m.onnx", "runs/first/model.lcz", *few]) == 2
    assert "no runtime 'tensorrt/x': did you mean 'tensorrt'?" in capsys.readouterr().err
    few[-1] = "onnxruntime,torch/eager,openvino"
    assert main(["measure", "m.onnx", "runs/first/model.lcz", *few]) == 0
    said = capsys.readouterr().out
    assert "left out: m.onnx on torch/eager: it runs PyTorch models" in said
    assert "fastest for runs/first/model.lcz: " in said
    assert ("not here: openvino/bf16: this CPU has no bf16" in said) == (openvino.why_not("bf16") is not None)


def test_an_interrupt_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_compress.run.train.train", interrupted)
    assert main(["train", *TINY]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"


@pytest.mark.filterwarnings("ignore")  # of a fit that is only begun
def test_a_fit_that_sigterm_ends_is_not_a_finished_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_compress.run.train.train", lambda *_: train_until_stopped())
    assert main(["train", *TINY]) == 143
    assert capsys.readouterr().err.endswith("stopped by SIGTERM; the same command goes on from here\n")


def test_a_fault_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lightning_compress.run.train.train", broken)
    with pytest.raises(ZeroDivisionError):
        main(["train", *TINY])


def test_dry_run_of_the_shipped_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "digits", "--dry-run", "--out", str(tmp_path / "study")]) == 0
    assert "24" in capsys.readouterr().out
    assert not (tmp_path / "study").exists()


def test_public_names() -> None:
    assert sorted(lightning_compress.__all__) == lightning_compress.__all__
    for name in lightning_compress.__all__:
        found = getattr(lightning_compress, name)
        assert found.__name__ == name
        assert name in dir(lightning_compress)
    from lightning_compress import Prune
    from lightning_compress.prune.method import Prune as TheSame

    assert Prune is TheSame
    with pytest.raises(AttributeError, match="it has Adversarial, Compress"):
        lightning_compress.Prun  # noqa: B018


def test_importing_the_package_or_its_command_line_takes_no_torch() -> None:
    code = (
        "import sys, lightning_compress, lightning_compress.cli; print(sorted({'torch', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of one real trial."""
    folder = tmp_path_factory.mktemp("sweeps") / "small"
    base = ["model.width=0.25", "epochs=1", "measure.rounds=3", "wandb.mode=disabled", "prune=gradual"]
    assert main(["train", *base, "--out", str(folder / "runs/trial-0")]) == 0
    spec = StudySpec(
        name="small",
        base=base,
        objectives={"val/accuracy": "max", "cost/packed_bytes": "min"},
        space={"optimizer.lr": [0.1, 0.01]},
        trials=1,
    )
    data = {"schema": 1, "identity": "abcd", "created": "2024", "spec": spec.asdict()}
    (folder / "study.json").write_text(json.dumps(data))
    values = [Result.load(folder / "runs/trial-0").get(name) for name in spec.objectives]
    ended = {"event": "end", "trial": 0, "state": "done", "values": values, "reason": None, "violations": {}}
    begun = [{"event": "ask", "trial": trial, "params": {"optimizer.lr": 0.01}} for trial in (0, 1)]
    events = [*begun, ended]  # trial 1 is running yet
    (folder / "ledger.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return folder


def test_a_point_is_picked_measured_elsewhere_and_reported(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pick", str(study), "--max-bytes", "1MB", "--min-accuracy", "1%"]) == 0
    out = capsys.readouterr().out
    assert "trial 0: the best val/accuracy of 1 front points within --max-bytes 1MB, --min-accuracy 1%" in out
    assert "parity with PyTorch on 32 validation samples: largest gap" in out
    to = Path("runs/deploy/small-trial-0")
    assert f"written: {to}" in out
    (tmp_path / "empty").mkdir()
    for script, *words in (("predict.py", "--check"), ("measure.py", "--rounds", "3", "--device", "a board")):
        argv = [sys.executable, "-P", str(tmp_path / to / script), *words]
        subprocess.run(argv, cwd=tmp_path / "empty", env={}, check=True, capture_output=True)
    assert main(["report", str(study), "--latency", f"{to}/latency-a-board.json"]) == 0
    assert "trial-0 on a board, 1 thread, batch 64: " in capsys.readouterr().out
    for _ in range(2):  # a later report has it still
        assert "faster on a board, 1 thread, batch 64" in (tmp_path / "reports/small/front.csv").read_text()
        assert main(["report", str(study)]) == 0


def test_what_pick_and_its_latencies_refuse(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--max-bytes 10 alone excludes all (the least is" in refused("pick", study, "--max-bytes", 10)
    assert "expected a number above 0" in refused("pick", study, "--max-latency", "quick")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine").touch()
    assert "taken holds something else already" in refused("pick", study, "--to", "taken")
    copy = shutil.copytree(study, tmp_path / "copy")
    (copy / "runs/trial-0/model.lcz").write_bytes(b"LCZ")
    assert "trial-0/model.lcz is not a sound compressed model" in refused("pick", copy, "--to", "new")
    (copy / "runs/trial-0/model.onnx").unlink()
    assert "model.onnx: it was deleted or moved" in refused("pick", copy, "--to", "new")
    (tmp_path / "latency-x.json").write_text("{}")
    assert "no file that measure.py wrote" in refused("report", study, "--latency", "latency-x.json")
    assert "nowhere.json" in refused("report", study, "--latency", "nowhere.json")
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "reports").exists()


@pytest.mark.slow
def test_a_study_and_its_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    study = {
        "base": ["model.width=0.25", "epochs=1", "measure.rounds=3", "wandb.mode=disabled", "prune=gradual"],
        "objectives": {"val/accuracy": "max", "cost/packed_bytes": "min"},
        "space": {"optimizer.lr": {"low": 0.001, "high": 0.1, "log": True}},
        "trials": 2,
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(study))
    for _ in range(2):
        assert main(["sweep", "tiny.yaml"]) == 0
        assert "report: reports/tiny/index.html" in capsys.readouterr().out
        assert (tmp_path / "reports/tiny/front.csv").exists()
    front = lightning_compress.pareto("runs/sweeps/tiny")
    accuracies = [result.get("val/accuracy") for result in front]
    assert accuracies == sorted(accuracies, reverse=True)
    assert 1 <= len(front) <= 2
    assert main(["pick", "tiny.yaml", "--to", "board"]) == 0
    assert "parity with PyTorch on 32 validation samples" in capsys.readouterr().out
    assert main(["report", "tiny.yaml"]) == 0
    with pytest.raises(ValueError, match="holds no study"):
        lightning_compress.pareto(tmp_path)
