"""Running a list of jobs to their ends on a launcher."""

import time
from collections import deque
from collections.abc import Iterator

from lightning_compress.launch.job import Handle, Job, Launcher, Outcome

_PAUSE = 0.05


def ends(waiting: deque[Job], launcher: Launcher) -> Iterator[tuple[Job, Outcome]]:
    """Each of the jobs that wait as it ends, and how; as many run at once as the launcher has room for."""
    running: list[tuple[Job, Handle]] = []
    while waiting or running:
        started = bool(waiting) and launcher.has_room(waiting[0].resources)
        if started:
            job = waiting.popleft()
            running.append((job, launcher.submit(job)))
        ended = [(job, handle, outcome) for job, handle in running if (outcome := handle.poll()) is not None]
        running = [one for one in running if one not in [(job, handle) for job, handle, _ in ended]]
        yield from ((job, outcome) for job, _, outcome in ended)
        if not started and not ended:
            time.sleep(_PAUSE)
