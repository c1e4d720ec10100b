"""A node that is about to be taken away says so with SIGTERM: the replica on it hears it at once.

Ray's own handler for SIGTERM is a Python one, and Ray's main thread runs no Python while a replica works,
so that nothing would happen until the node is gone. The signal's number is written to a pipe by C code
the moment it comes (`signal.set_wakeup_fd`), which can be asked for in the main thread alone: Ray runs an
actor's constructor there, and what it is asked then elsewhere.
"""

import functools
import os
import signal
import threading
from collections.abc import Callable

from magbatch.replica.watchdog import deathless

notice = threading.Event()
"""Set once this process has got SIGTERM."""


def listen(die: Callable[[], None]) -> None:
    """Set `notice` when SIGTERM comes, from now on. In a worker's main thread only.

    Args:
        die: Ends this process, if nothing can be heard any more.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    deathless("preemption", functools.partial(_wait, reading), die)


def _wait(reading: int) -> None:
    while signal.SIGTERM not in os.read(reading, 64):
        pass
    notice.set()
