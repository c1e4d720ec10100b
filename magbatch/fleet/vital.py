"""The processes that a local Ray cannot do without, watched: a run ends within a moment of theirs.

Ray's own code would notice after 15 to 60 seconds, and end the driver without a word.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from magbatch import guard

VITAL = ("gcs_server", "raylet")  # the raylet ends with its agents, and workers with the raylet
LOOK_S = 0.25


class Vital:
    """Watches the children of this process that are called as in `VITAL` and were not there at first.

    Args:
        local: Whether Ray is this process's own; nothing is watched where it is not.
    """

    def __init__(self, *, local: bool) -> None:
        self._parent = psutil.Process() if local else None
        self._before = {child.pid for child in self._parent.children()} if self._parent is not None else set()
        self._names: dict[int, str] = {}
        self._over = threading.Event()
        self._why: str | None = None

    @contextmanager
    def watched(self, *, starting: bool = False) -> Iterator[None]:
        """For the length of a block, what has ended is told to the keeper, which ends a driver that hangs over it.

        Args:
            starting: The children start within the block.
        """
        self._over.clear()
        thread = threading.Thread(target=self._watch, args=(starting,), name="vital", daemon=True)
        thread.start()
        try:
            yield
            if starting:
                self._find()
        finally:
            self._over.set()
            thread.join()

    def broken(self) -> str | None:
        """What has ended and how, in a line; None while all are there."""
        if self._why is None:
            for pid, name in list(self._names.items()):
                if (how := _how_it_ended(pid)) is not None:
                    self._why = f"Ray's {name} (process {pid}) {how}; what was committed stays"
                    break
        return self._why

    def _find(self) -> None:
        for child in self._parent.children() if self._parent is not None else []:
            with suppress(psutil.NoSuchProcess):
                if child.pid not in self._before and (name := child.name()) in VITAL:
                    self._names[child.pid] = name

    def _watch(self, starting: bool) -> None:
        while not self._over.wait(LOOK_S):
            if starting:
                self._find()
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
