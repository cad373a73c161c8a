"""A study in the browser: the only file that imports optuna-dashboard, an extra."""

from pathlib import Path

from lightning_compress.sweep.store import open_storage


def serve(folder: Path | None, storage: str | None = None, *, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Show the studies of a storage, as `store.open_storage` finds it, at http://host:port until interrupted.

    Whoever reaches the port may rename or delete studies there: leave `host` unless others shall.

    Raises:
        ValueError: optuna-dashboard is not installed, or the storage cannot be used.
    """
    try:
        from optuna_dashboard import run_server
    except ImportError as error:
        raise ValueError("the dashboard is an extra: pip install 'lightning-compress[dashboard]'") from error
    run_server(open_storage(folder, storage), host=host, port=port)
