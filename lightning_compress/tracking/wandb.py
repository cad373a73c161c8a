"""Weights & Biases: the only file that imports wandb, and only when a run is opened (the import takes 0.7 s).

W&B mirrors what is in the result files, so a failure of W&B (refused, unreachable, full disk) is a warning and never
stops or fails a training. Everything a run writes, staged artifacts included, lies under `<folder>/wandb`, from where
`tracking.sync` uploads it.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, final

from lightning_compress.tracking.mode import (
    Mode,
    ModeName,
    announced,
    in_outage,
    inside,
    mode_named,
    note_outage,
    one_line,
)

if TYPE_CHECKING:
    import wandb

# A server that is down must cost seconds: W&B's own limits are 10 s, 20 s, 90 s and none.
LOGIN_SECONDS = "5"
REQUEST_SECONDS = "5"
INIT_SECONDS = 8.0
FINISH_SECONDS = 15.0  # what is not uploaded by then stays on disk for `lightning-compress sync`

_OPEN: set[str] = set()  # ids of the runs that this process has open


def choose_mode(folder: Path, wanted: str = "auto") -> Mode:
    """Decide where the runs kept under `folder` go: online when logged in to W&B, else offline.

    `wanted` is auto, online, offline or disabled; auto leaves it to the environment variable WANDB_MODE. Online
    without a login (WANDB_API_KEY, netrc, W&B's own settings) that the server accepts within seconds becomes offline.
    The server is asked once here; `log_run` takes the name of the mode as it is.

    Raises:
        ValueError: the mode is unknown.

    Example:
        >>> choose_mode(Path("runs"), "offline").sentence
        'W&B logs offline (as asked). To upload: `wandb login`, then `lightning-compress sync runs`.'
    """
    name = mode_named(wanted)
    if name in ("offline", "disabled"):
        return announced(name, folder)
    missing = _missing_login(folder)
    return announced("online", folder) if missing is None else announced("offline", folder, missing)


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

    @property
    def url(self) -> str | None:
        """Where W&B shows the run; None for one that is offline or not there."""
        return None if self.handle is None or self.handle.offline else self.handle.url

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
            handle.log({name: wandb_library().Table(columns=list(columns), data=[list(row) for row in rows])})

        self._mirror(f"log the table {name!r}", log)

    def plotly(self, name: str, figure: object) -> None:
        """Log a plotly figure."""
        self._mirror(f"log the figure {name!r}", lambda handle: handle.log({name: wandb_library().Plotly(figure)}))

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
            artifact = wandb_library().Artifact(name, type=type, metadata=dict(metadata or {}))
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
    mode: str,
    x_axis: str = "epoch",
    patience: float = FINISH_SECONDS,
) -> Iterator[Run]:
    """Open one W&B run for the length of the `with` block, and always finish it: exit code 0, or 1 on an exception.

    `config` is the resolved config; `folder` is made if need be and is the study's, shared by its trials; `mode` is
    online, offline, disabled, or auto to have it chosen; `x_axis` is the metric that curves are drawn over; `patience`
    is for how many seconds the end waits for uploads. A run of the same id goes on where it stopped. One that cannot
    start online is kept offline, one that cannot start at all drops what it is given; either is a warning.

    Raises:
        ValueError: the mode is unknown.

    Example:
        >>> labels = Labels(project="digits", id="digits-0", name="digits")
        >>> with log_run(labels, config={"lr": 0.1}, folder=Path("runs"), mode="disabled") as run:
        ...     run.log({"epoch": 1, "val/accuracy": 0.5})
    """
    name = mode_named(mode) or choose_mode(folder, mode).name
    if name == "disabled":
        yield Run(None)
        return
    with inside(folder, WANDB_HTTP_TIMEOUT=os.environ.get("WANDB_HTTP_TIMEOUT", REQUEST_SECONDS)):
        run = Run(_start(labels, config, folder, name, patience))
        _OPEN.add(labels.id)
        exit_code = 1
        try:
            run.use_axis(x_axis)
            yield run
            exit_code = 0
        finally:
            run.finish(exit_code)
            _OPEN.discard(labels.id)


def _start(
    labels: Labels, config: Mapping[str, Any], folder: Path, mode: ModeName, patience: float
) -> "wandb.Run | None":
    if mode == "online" and not in_outage(folder):
        try:
            return _open(labels, config, folder, mode, patience)
        except Exception as error:
            _warn(f"W&B run {labels.id}: could not start online", error, "it is kept offline")
            with suppress(OSError):
                note_outage(folder)
            if not _OPEN:
                wandb_library().teardown()  # the service keeps the id of a run that it could not start
    try:
        return _open(labels, config, folder, "offline", patience)
    except Exception as error:
        _warn(f"W&B run {labels.id}: could not start offline", error, "the run goes on without W&B")
        return None


def _open(labels: Labels, config: Mapping[str, Any], folder: Path, mode: ModeName, patience: float) -> "wandb.Run":
    # W&B answers an unwritable folder by writing to the system's temporary one; this raises instead.
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    library = wandb_library()
    settings = library.Settings(
        console="off",
        silent=True,
        init_timeout=INIT_SECONDS,
        finish_timeout=patience,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=1,  # W&B's default of 15 s loses a short trial that is killed
        # Results carry their provenance; that W&B looks it up too takes a quarter of a second for each run.
        x_save_requirements=False,
        disable_git=True,
        disable_code=True,
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
        resume="allow",  # else a trial that goes on counts its steps from 0 again and loses its summary
        settings=settings,
    )
    os.environ.pop("WANDB_SERVICE", None)  # for the child processes started while the run is open
    return run


def _missing_login(folder: Path) -> str | None:
    """Why runs cannot go online, or None when they can."""
    with inside(folder, WANDB_HTTP_TIMEOUT=os.environ.get("WANDB_HTTP_TIMEOUT", LOGIN_SECONDS)):
        try:
            found = wandb_library().login(prompt=False, verify=True)
        except Exception as error:
            return one_line(error)
    return None if found else "no W&B login found"


def wandb_library() -> ModuleType:
    """The wandb package, imported here on first use."""
    import wandb

    return wandb


def record_class() -> Any:
    """The protocol buffer that W&B writes its logs in."""
    from wandb.proto import wandb_internal_pb2

    return vars(wandb_internal_pb2)["Record"]  # made when the module is loaded: type checkers do not see it


def _warn(what: str, error: Exception, then: str) -> None:
    warnings.warn(f"{what} ({one_line(error)}): {then}", RuntimeWarning, stacklevel=2)
