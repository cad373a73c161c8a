"""Weights & Biases: the only file that imports wandb, and only when a run is opened (the import takes 0.7 s).

W&B mirrors what is in the result files, so a failure of W&B (refused, unreachable, full disk) is a warning and never
stops or fails a training. Everything a run writes, staged artifacts included, lies under `<folder>/wandb`; keep that
folder where it is until it is synced, since W&B notes absolute paths.
"""

import difflib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, final

if TYPE_CHECKING:
    import wandb

ModeName = Literal["online", "offline", "disabled"]

# A server that is down must cost seconds: W&B's own limits are 10 s, 90 s and none.
LOGIN_SECONDS = "5"
INIT_SECONDS = 8.0
FINISH_SECONDS = 60.0  # what is not uploaded by then stays on disk for `wandb sync`

_MODES: dict[str, ModeName | None] = {
    "auto": None,
    "online": None,
    "run": None,
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


@final
@dataclass(frozen=True)
class Mode:
    """Where runs go, and the sentence that tells the user so and how to upload them later.

    Example:
        >>> Mode("disabled", "W&B is off.").name
        'disabled'
    """

    name: ModeName
    sentence: str


def choose_mode(folder: Path, wanted: str = "auto") -> Mode:
    """Decide where the runs kept under `folder` go: online when logged in to W&B, else offline.

    `wanted` is auto, online, offline or disabled; auto leaves it to the environment variable WANDB_MODE. Online
    without a login (WANDB_API_KEY, netrc, W&B's own settings) that the server accepts within seconds becomes offline.

    Raises:
        ValueError: the mode is unknown.

    Example:
        >>> choose_mode(Path("runs"), "offline").sentence
        'W&B logs offline (as asked). To upload: `wandb login`, then `wandb sync runs/wandb`.'
    """
    asked = wanted if wanted != "auto" else os.environ.get("WANDB_MODE") or "auto"
    if asked not in _MODES:
        near = difflib.get_close_matches(asked, _MODES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown W&B mode {asked!r}: expected auto, online, offline or disabled{hint}")
    name, reason = _MODES[asked], "as asked"
    if name is None:
        missing = _missing_login(folder)
        name, reason = ("online", "") if missing is None else ("offline", missing)
    if name == "disabled":
        return Mode(name, "W&B is off.")
    if name == "online":
        return Mode(name, f"W&B logs online (you are logged in); a copy stays in {folder / 'wandb'}.")
    return Mode(name, f"W&B logs offline ({reason}). To upload: `wandb login`, then {_sync(folder)}.")


@final
@dataclass(frozen=True)
class Labels:
    """What W&B files a run under; the `id` is the caller's, so that a trial and its run find each other.

    Example:
        >>> Labels(project="digits", id="study-00003", name="trial 3", group="study", job_type="trial").tags
        ()
    """

    project: str
    id: str
    name: str
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()


@final
class Run:
    """One open W&B run, or a stand-in that drops everything where there is none (`handle` is None).

    Methods never raise on a failure of W&B: each kind of failure is one warning.

    Example:
        >>> Run(None).log({"epoch": 1, "val/accuracy": 0.5})
    """

    def __init__(self, handle: "wandb.Run | None") -> None:
        self.handle = handle
        self._failures: set[str] = set()

    def use_axis(self, metric: str) -> None:
        """Draw all curves over `metric`; `log_run` calls it. A step that W&B counts itself breaks on a resumed run."""

        def define(handle: "wandb.Run") -> None:
            handle.define_metric(metric)
            handle.define_metric("*", step_metric=metric)

        self._mirror("set the x axis", define)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Add one point to the curves; `metrics` holds the x axis of the run too."""
        self._mirror("log metrics", lambda handle: handle.log(dict(metrics)))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set the final values of the run; no key may be the name of a table or figure."""
        self._mirror("set the summary", lambda handle: handle.summary.update(dict(values)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table of `rows`, one value per column each."""

        def log(handle: "wandb.Run") -> None:
            handle.log({name: _library().Table(columns=list(columns), data=[list(row) for row in rows])})

        self._mirror(f"log the table {name!r}", log)

    def plotly(self, name: str, figure: object) -> None:
        """Log a plotly figure."""
        self._mirror(f"log the figure {name!r}", lambda handle: handle.log({name: _library().Plotly(figure)}))

    def artifact(
        self,
        path: Path,
        name: str,
        *,
        type: str,
        metadata: Mapping[str, Any] | None = None,
        aliases: Sequence[str] = (),
    ) -> None:
        """Log the file, or everything in the folder, at `path` as an artifact; it is copied at once."""

        def log(handle: "wandb.Run") -> None:
            artifact = _library().Artifact(name, type=type, metadata=dict(metadata or {}))
            add = artifact.add_dir if path.is_dir() else artifact.add_file
            add(str(path))
            handle.log_artifact(artifact, aliases=list(aliases))

        self._mirror(f"log the artifact {name!r}", log)

    def finish(self, exit_code: int) -> None:
        """Close the run; `log_run` calls it. An `exit_code` other than 0 marks the run as failed."""
        self._mirror("finish", lambda handle: handle.finish(exit_code=exit_code))

    def _mirror(self, what: str, action: "Callable[[wandb.Run], object]") -> None:
        if self.handle is None:
            return
        try:
            action(self.handle)
        except Exception as error:
            if what not in self._failures:
                self._failures.add(what)
                _warn(f"W&B run {self.handle.id}: could not {what}", error, "the run goes on without it")


@contextmanager
def log_run(
    labels: Labels,
    *,
    config: Mapping[str, Any],
    folder: Path,
    mode: ModeName,
    x_axis: str = "epoch",
) -> Iterator[Run]:
    """Open one W&B run for the length of the `with` block, and always finish it: exit code 0, or 1 on an exception.

    `config` is the resolved config; `folder` is made if need be and is the study's, shared by its trials; `x_axis`
    is the metric that curves are drawn over. A run that cannot start is a warning, and drops what it is given.

    Example:
        >>> labels = Labels(project="digits", id="digits-0", name="digits")
        >>> with log_run(labels, config={"lr": 0.1}, folder=Path("runs"), mode="disabled") as run:
        ...     run.log({"epoch": 1, "val/accuracy": 0.5})
    """
    if mode == "disabled":
        yield Run(None)
        return
    with _environment(folder):
        run = Run(_start(labels, config, folder, mode))
        exit_code = 1
        try:
            run.use_axis(x_axis)
            yield run
            exit_code = 0
        finally:
            run.finish(exit_code)


def _start(labels: Labels, config: Mapping[str, Any], folder: Path, mode: ModeName) -> "wandb.Run | None":
    try:
        return _open(labels, config, folder, mode)
    except Exception as error:
        _warn(f"W&B run {labels.id}: could not start {mode}", error, "the run goes on without W&B")
        return None


def _open(labels: Labels, config: Mapping[str, Any], folder: Path, mode: ModeName) -> "wandb.Run":
    # W&B answers an unwritable folder by writing to the system's temporary one; this raises instead.
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    library = _library()
    settings = library.Settings(
        console="off",
        silent=True,
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=1,  # W&B's default of 15 s loses a short trial that is killed
    )
    run: wandb.Run = library.init(
        project=labels.project,
        id=labels.id,
        name=labels.name,
        group=labels.group,
        job_type=labels.job_type,
        tags=labels.tags,
        config=dict(config),
        dir=str(folder),
        mode=mode,
        reinit="create_new",
        settings=settings,
    )
    os.environ.pop("WANDB_SERVICE", None)  # for the child processes started while the run is open
    return run


def _missing_login(folder: Path) -> str | None:
    """Why runs cannot go online, or None when they can."""
    with _environment(folder, WANDB_HTTP_TIMEOUT=os.environ.get("WANDB_HTTP_TIMEOUT", LOGIN_SECONDS)):
        try:
            found = _library().login(prompt=False, verify=True)
        except Exception as error:
            return _one_line(error)
    return None if found else "no W&B login found"


@contextmanager
def _environment(folder: Path, **more: str) -> Iterator[None]:
    """Keep what W&B stages and caches inside `folder`, its greetings off the terminal and its service to ourselves.

    A process finds the W&B service of its parent through WANDB_SERVICE and fails if that one is gone. Without it each
    process starts its own, so that a trial outlives the driver and one crash does not reach the others.
    """
    place = folder.resolve() / "wandb"
    inside = {
        "WANDB_DATA_DIR": str(place / "data"),
        "WANDB_CACHE_DIR": str(place / "cache"),
        "WANDB_SILENT": "true",
        **more,
    }
    before = {key: os.environ.get(key) for key in inside}
    os.environ.pop("WANDB_SERVICE", None)
    os.environ.update(inside)
    try:
        yield
    finally:
        os.environ.pop("WANDB_SERVICE", None)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _library() -> ModuleType:
    import wandb

    return wandb


def _sync(folder: Path) -> str:
    return f"`wandb sync {folder / 'wandb'}`"


def _warn(what: str, error: Exception, then: str) -> None:
    warnings.warn(f"{what} ({_one_line(error)}): {then}", RuntimeWarning, stacklevel=2)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
