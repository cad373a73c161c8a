"""The driver's side of the process that local jobs are forked from."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, final

_START = "import sys; from lightning_compress.launch.forks import main; main(int(sys.argv[1]))"


@final
class Server:
    """A fork server with `preload` imported; `dead` is set when it is found gone."""

    def __init__(self, preload: Sequence[str]) -> None:
        self.dead = False
        self._ready = False
        self._buffer = b""
        self._link, theirs = socket.socketpair()
        path = [os.path.abspath(each) for each in sys.path]
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=_environment(path),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.send(driver=os.getpid(), path=path, preload=list(preload))

    def send(self, **request: Any) -> None:
        """Tell it something; a dead one does not hear it, which `events` finds."""
        with suppress(ConnectionError):
            self._link.sendall(json.dumps(request).encode() + b"\n")

    def events(self, *, wait: bool = False) -> list[dict[str, Any]]:
        """What it has said since; with `wait` there is at least a part of a message, or it is dead."""
        try:
            received = self._link.recv(65536, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionError:
            received = b""
        self.dead = not received
        *lines, self._buffer = (self._buffer + received).split(b"\n")
        events = [json.loads(line) for line in lines]
        self._ready |= any("ready" in event for event in events)
        return [event for event in events if "ready" not in event]

    def stop(self) -> None:
        """Have it kill all jobs and end; when this returns they are gone."""
        self.events()
        if not self._ready:
            # It still imports, hears nothing and has no job.
            self._process.kill()
        # Not `close` alone: a fork of this process may hold the socket too.
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()
        self._process.wait()


def _environment(path: Sequence[str]) -> dict[str, str]:
    """For the server alone: no thread pool before the fork, no CUDA context by counting devices."""
    own = {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "PYTHONPATH": os.pathsep.join(path)}
    return {**os.environ, **own}
