"""A watch over the processes that a local Ray cannot do without: a run ends within a moment of their end.

Ray's own code would notice after 15 to 60 seconds, and end the driver without a message.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from magbatch import guard
from magbatch.fleet.ray_private import vital_processes

LOOK_S = 0.25


class Vital:
    """Watch on child processes, found by their names. Children that started before this object do not count.

    Args:
        local: Whether this process starts its own Ray; otherwise nothing is watched.
        names: Names of the processes to watch; None takes those of Ray.
        look_s: Seconds between two looks.
    """

    def __init__(self, *, local: bool, names: tuple[str, ...] | None = None, look_s: float = LOOK_S) -> None:
        self._parent = psutil.Process() if local else None
        self._before = {child.pid for child in self._parent.children()} if self._parent is not None else set()
        self._vital, self._look_s = names or vital_processes(), look_s
        self._names: dict[int, str] = {}  # process id to name
        self._over = threading.Event()
        self._broken: str | None = None

    @contextmanager
    def watched(self, *, starting: bool = False) -> Iterator[None]:
        """Within this block, tell the keeper if a process ends: the keeper ends a driver that then hangs.

        Args:
            starting: Whether the processes start within the block.
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
        """Name and end of the first process that has ended, in one line; None while all run."""
        if self._broken is None:
            for pid, name in list(self._names.items()):
                if (how := _how_it_ended(pid)) is not None:
                    self._broken = f"Ray's {name} (process {pid}) {how}; committed rows stay"
                    break
        return self._broken

    def _find(self) -> None:
        for child in self._parent.children() if self._parent is not None else []:
            with suppress(psutil.NoSuchProcess):
                if child.pid not in self._before and (name := child.name()) in self._vital:
                    self._names[child.pid] = name

    def _watch(self, starting: bool) -> None:
        while not self._over.wait(self._look_s):
            if starting:
                self._find()
            if (broken := self.broken()) is not None:
                guard.explain(broken)
                return


def _how_it_ended(pid: int) -> str | None:
    """The way in which a child has ended, in words; None while it runs. The child is left for Ray to reap."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return "has ended"
    if found is None:
        return None
    if found.si_code == os.CLD_EXITED:
        return guard.how_it_ended(found.si_status << 8)
    return guard.how_it_ended(signal.Signals(found.si_status))
