"""The processes that a local Ray cannot do without, watched: a run ends within a moment of theirs.

Ray's own code would notice after 15 to 60 seconds, and end the driver without a word.
"""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import psutil

from magbatch import guard

VITAL = ("gcs_server", "raylet")  # the raylet ends with its agents, and workers with the raylet
LOOK_S = 0.25


class Vital:
    """Watches children of this process.

    Args:
        processes: Children; those by other names than `VITAL` are not watched.
    """

    def __init__(self, processes: Iterable[psutil.Process] = ()) -> None:
        self._names: dict[int, str] = {}
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                if process.name() in VITAL and process.ppid() == os.getpid():
                    self._names[process.pid] = process.name()
        self._over = threading.Event()
        self._why: str | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For the length of a block, what has ended is told to the keeper, which ends a driver that hangs over it."""
        thread = threading.Thread(target=self._watch, name="vital", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def broken(self) -> str | None:
        """What has ended and how, in a line; None while all are there."""
        if self._why is None:
            for pid, name in self._names.items():
                if (how := _how_it_ended(pid)) is not None:
                    self._why = f"Ray's {name} (process {pid}) {how}; what was committed stays"
                    break
        return self._why

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            if (why := self.broken()) is not None:
                guard.explain(why)
                return


def _how_it_ended(pid: int) -> str | None:
    """How a child has ended; None while it runs. It stays to be waited for by Ray."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return "has ended"
    if found is None:
        return None
    if found.si_code == os.CLD_EXITED:
        return guard.how_it_ended(found.si_status << 8)
    return guard.how_it_ended(signal.Signals(found.si_status))
