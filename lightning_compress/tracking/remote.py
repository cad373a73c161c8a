"""What the W&B server holds of a run, read through W&B's public API."""

from typing import Any, final

from lightning_compress.tracking.content import Artifact, Content
from lightning_compress.tracking.mode import one_line
from lightning_compress.tracking.wandb import wandb_library

READ_SECONDS = 20


@final
class Remote:
    """The server that this machine is logged in to; used inside `mode.inside`.

    Raises:
        ConnectionError: there is no login, or the server does not accept it.
    """

    def __init__(self) -> None:
        try:
            self._api = wandb_library().Api(timeout=READ_SECONDS)
        except Exception as error:
            raise ConnectionError(one_line(error)) from error
        self.url = str(self._api.settings["base_url"])

    def read(self, entity: str, project: str, run: str) -> Content | None:
        """What is there of a run, None where there is no such run; an empty `entity` is that of the login.

        Raises:
            ConnectionError: the server did not answer.
        """
        try:
            self._api.flush()  # else it answers from what it read before an upload
            found = self._api.run("/".join(part for part in (entity, project, run) if part))
        except Exception as error:
            if "Could not find run" in str(error):
                return None
            raise ConnectionError(one_line(error)) from error
        try:
            return _content(found)
        except Exception as error:
            raise ConnectionError(one_line(error)) from error


def _content(run: Any) -> Content:
    return Content(
        rows=tuple(run.scan_history(use_cache=False)),
        summary=dict(run.summary_metrics),
        config=frozenset(run.config),
        files={file.name: file.size for file in run.files(per_page=500)},
        artifacts=tuple(map(_artifact, _logged(run))),
    )


def _logged(run: Any) -> list[Any]:
    """The committed artifacts of a run, one by one: W&B's client fails at one whose upload was interrupted."""
    listing, found = run.logged_artifacts(per_page=1), []
    while True:
        try:
            found.append(next(listing))
        except StopIteration:
            return found
        except AssertionError:
            listing.index -= 1


def _artifact(artifact: Any) -> Artifact:
    entries = artifact.manifest.entries.items()
    return Artifact(
        artifact.source_name.rpartition(":")[0], {path: (entry.size, entry.digest) for path, entry in entries}
    )
