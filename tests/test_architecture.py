"""The floors: a folder imports only lower floors, never a sibling folder, never from an `__init__`."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_compress"
FLOORS = {
    **dict.fromkeys(("core", "coding", "models", "data"), 0),
    **dict.fromkeys(("cost", "tracking"), 1),
    **dict.fromkeys(("distill", "prune", "quantize", "share", "lowrank", "slim", "export", "launch"), 2),
    **dict.fromkeys(("module", "callback"), 3),
    "run": 4,
    **dict.fromkeys(("sweep", "deploy", "tables"), 5),
    "compare": 6,
    "cli": 7,
    "arguments": 0,
}
HOMES = {
    "wandb": {"tracking/wandb.py"},
    "wandb_workspaces": {"tables/wandb_report.py"},
    "optuna": {"sweep/study.py", "sweep/view.py", "sweep/store.py"},
    "optuna_dashboard": {"sweep/dashboard.py"},
    "submitit": {"launch/slurm.py"},
    "ray": {"launch/ray.py"},
    "hydra": {"run/config.py"},
    "omegaconf": {"run/config.py"},
    "onnx": {"export/pieces.py"},
    "onnxscript": {"export/four_bits.py", "export/onnx.py", "export/unshare.py"},
    "onnxruntime": {
        *("export/runtime.py", "export/trial.py"),  # the latter is a program of its own
        *("deploy/predict.py", "deploy/measure.py", "deploy/measure_table.py"),  # these leave this package
    },
    "openvino": {"export/openvino.py"},
    "torch_pruning": set(),  # tests and benchmarks hold our graph against it
    "constriction": {"coding/entropy.py"},
    "datasets": {"data/source.py"},
    "tokenizers": {"data/vocabulary.py", "deploy/predict.py"},
    "torchmetrics": {"core/task.py"},
    "plotly": {"sweep/report.py", "sweep/curves.py", "compare/figures.py", "compare/page.py"},
    "matplotlib": {"sweep/report.py"},
    "soundfile": {"data/clip.py"},
    "timm": {"models/load.py"},
    "transformers": {"models/huggingface.py"},
}
BANNED_NAMES = {"utils", "helpers", "common", "misc", "manager"}
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 300, 40


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively; write the absolute path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _target(name: str) -> Path | None:
    """The file that an import of ours reads: `a.b.c` is a module or a name in one."""
    parts = name.split(".")[1:]
    for length in (len(parts), len(parts) - 1):
        stem = PACKAGE.joinpath(*parts[:length])
        if stem.with_suffix(".py").is_file():
            return stem.with_suffix(".py")
    return None


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        return
    assert room in FLOORS, f"{room} has no floor yet: add it to FLOORS"
    for name in _imports(path):
        if name.split(".")[0] != "lightning_compress":
            continue
        target = _target(name)
        assert target is not None, f"{path} imports {name}: name the defining file, not an __init__"
        assert target.name != "__init__.py", f"{path} imports {name} from an __init__"
        other = _room(target)
        assert other == room or FLOORS[other] < FLOORS[room], f"{room} (floor {FLOORS[room]}) imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_have_one_home(path: Path) -> None:
    for name in _imports(path):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or str(path.relative_to(PACKAGE)) in homes, f"{path} imports {name}; its home is {homes}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path: Path) -> None:
    assert path.stem not in BANNED_NAMES
    assert len(path.read_text().splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert (node.end_lineno or 0) - first.lineno < MAX_FUNCTION, f"{path.name}:{node.name} is too long"


def test_inits_hold_no_code_but_the_public_one() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        if path.parent != PACKAGE:
            assert len(body) == 1, f"{path} holds more than a docstring"


def test_nothing_imports_torchvision() -> None:
    assert not [path for path in FILES for name in _imports(path) if name.split(".")[0] == "torchvision"]


def test_the_wheel_carries_every_folder() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for path in PACKAGE.rglob("__init__.py")}
    ours = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert ours | {f"lightning_compress.{name}" for name in ("conf", "shipped.experiments", "shipped.sweeps")} == listed
