"""The process that local jobs are forked from: it has imported what they need, watches them, and sees them all dead.

Started by `server.Server`, never imported by the driver. Unlike the fork server of `multiprocessing` it does not
import the driver's main script, belongs to one launcher and ends with it, and sees that nothing of a job is left over.
Messages are lines of JSON over one socket, whose end of file is the driver's death.
"""

import atexit
import gc
import io
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

from lightning_compress.launch import call, linux

# How often to look whether the driver is there: a fork of it may hold its socket open.
_PATIENCE = 1.0


@final
@dataclass
class _Running:
    """A job: `left` seconds it may run since it last went on, at the time `since`; None while it stands still."""

    number: int
    exclusive: bool
    left: float
    since: float | None
    stopped: str | None = None

    def deadline(self) -> float:
        return float("inf") if self.since is None else self.since + self.left


@final
class _Exit:
    """Ends a process with `code` when all other exit functions have run, being the first one registered.

    Python's own end takes libraries apart for 0.3 s after an import of torch; nobody needs that.
    """

    def __init__(self) -> None:
        self.code = 1
        atexit.register(self._leave)

    def _leave(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(self.code)


def main(number: int) -> None:
    """Serve over the socket with this file number until the driver closes it; in a child, the job's exit code."""
    end = _Exit()
    try:
        _serve(socket.socket(fileno=number))
        end.code = 0
    except SystemExit as ended:
        end.code = int(ended.code or 0)


def _serve(link: socket.socket) -> None:
    buffer = b""
    while b"\n" not in buffer:
        received = link.recv(65536)
        if not received:
            return
        buffer += received
    line, buffer = buffer.split(b"\n", 1)
    hello = json.loads(line)
    linux.die_with_parent(hello["driver"])
    sys.path[:] = hello["path"]
    for name in hello["preload"]:
        try:
            import_module(name)
        except Exception:
            # A job that needs it fails with the same words.
            traceback.print_exc()
    # From here on the driver's death is for this process to see: it takes the jobs along.
    linux.outlive_parent()
    linux.adopt_orphans()
    # What is there now is shared with all jobs for as long as nobody touches it.
    gc.collect()
    gc.freeze()
    link.sendall(b'{"ready": true}\n')
    forks = Forks(link, hello["driver"])
    forks.obey(buffer)
    forks.serve()


@final
class Forks:
    """The jobs that run, by process."""

    def __init__(self, link: socket.socket, driver: int) -> None:
        self._link = link
        self._driver = driver
        self._buffer = b""
        self._running: dict[int, _Running] = {}
        self._ended, wake = socket.socketpair()
        for end in (self._ended, wake):
            end.setblocking(False)
        self._wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(link, selectors.EVENT_READ)
        self._selector.register(self._ended, selectors.EVENT_READ)

    def serve(self) -> None:
        """Do what the driver says until it is gone; then nothing that it started is left."""
        while os.getppid() == self._driver:
            ready = {key.fileobj for key, _ in self._selector.select(self._pause())}
            if self._ended in ready:
                self._ended.recv(4096)
            if self._link in ready and not self._listen():
                break
            self._reap()
            self._stop_late()
        self._end()

    def obey(self, received: bytes) -> None:
        """Do what the whole lines say; a part of one is kept for the next call."""
        *lines, self._buffer = (self._buffer + received).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "kill" in request:
                self._kill(request["kill"])
            else:
                self._start(request)

    def _pause(self) -> float:
        first = min((job.deadline() for job in self._running.values()), default=float("inf"))
        return min(max(first - time.monotonic(), 0.0), _PATIENCE)

    def _listen(self) -> bool:
        try:
            received = self._link.recv(65536)
        except ConnectionError:
            return False
        self.obey(received)
        return bool(received)

    def _say(self, **event: Any) -> None:
        with suppress(ConnectionError):
            self._link.sendall(json.dumps(event).encode() + b"\n")

    def _start(self, request: dict[str, Any]) -> None:
        number, exclusive = request["number"], request["exclusive"]
        if exclusive:
            self._freeze()
        try:
            pid = os.fork()
        except OSError as error:
            self._say(number=number, failed=str(error))
            return self._thaw()
        if pid == 0:
            self._leave()
            raise SystemExit(_child(request))
        # Child and parent both say it: whoever comes first, the group is there when it is first stopped.
        with suppress(OSError):
            os.setpgid(pid, pid)
        left = float("inf") if request["timeout"] is None else request["timeout"]
        self._running[pid] = _Running(number, exclusive, left, time.monotonic())
        return self._say(number=number, pid=pid)

    def _leave(self) -> None:
        """In the child: let go of what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for end in (self._link, self._ended, self._wake):
            end.close()

    def _kill(self, number: int) -> None:
        for pid, job in self._running.items():
            if job.number == number:
                job.stopped = job.stopped or "cancelled"
                _signal(pid, signal.SIGKILL)

    def _stop_late(self) -> None:
        now = time.monotonic()
        for pid, job in self._running.items():
            if job.deadline() <= now:
                job.stopped, job.left = "timeout", float("inf")
                _signal(pid, signal.SIGKILL)

    def _freeze(self) -> None:
        now = time.monotonic()
        for pid, job in self._running.items():
            if job.since is not None:
                _signal(pid, signal.SIGSTOP)
                job.left, job.since = job.left - (now - job.since), None

    def _thaw(self) -> None:
        for pid, job in self._running.items():
            if job.since is None:
                _signal(pid, signal.SIGCONT)
                job.since = time.monotonic()

    def _reap(self) -> None:
        while self._running:
            # Not waited for yet: until it is, no other process can get its number, so that its group can be killed.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            job = self._running.pop(ended.si_pid, None)
            if job is not None:
                _signal(ended.si_pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(ended.si_pid, 0)[1])
            if job is not None:
                self._bury()
                if job.exclusive:
                    self._thaw()
                self._say(number=job.number, code=code, stopped=job.stopped)

    def _bury(self) -> None:
        """Kill what an ended job left; running ones keep their own orphans, so all that came to us is of ended ones."""
        while left := [pid for pid in linux.children(os.getpid()) if pid not in self._running]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _end(self) -> None:
        for pid in self._running:
            _signal(pid, signal.SIGKILL)
        self._running.clear()
        self._bury()


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _child(request: dict[str, Any]) -> int:
    """Become the job: its own group, environment and log, then the call."""
    server = os.getppid()
    os.setpgid(0, 0)
    linux.die_with_parent(server)
    linux.adopt_orphans()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    job_file = Path(request["job_file"])
    _redirect(job_file.with_name(call.LOG))
    if request["fresh"]:
        os.execv(sys.executable, [sys.executable, "-u", "-m", call.__name__, str(job_file)])
    torch = sys.modules.get("torch")
    if torch is not None:
        # It read the environment when it was imported, in the server.
        torch.set_num_threads(int(request["environment"]["OMP_NUM_THREADS"]))
    sys.argv = [call.__file__, str(job_file)]
    return call.run(job_file)


def _redirect(log: Path) -> None:
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except OSError:
        # A full disk: the call that follows finds that too and says so.
        output = os.open(os.devnull, os.O_WRONLY)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(output)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # So that what a killed job printed is there.
            stream.reconfigure(line_buffering=True)
