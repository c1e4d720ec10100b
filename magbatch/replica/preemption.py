"""SIGTERM announces that a node is about to go: the replica on it hears the signal at once.

A handler in Python, such as Ray's, would not run: Ray's main thread executes no Python code while a replica works. So C
code writes the signal's number to a pipe the moment it arrives (`signal.set_wakeup_fd`). Only the main thread may ask
for that, and Ray runs an actor's constructor there.
"""

import functools
import os
import signal
import threading
from collections.abc import Callable

from magbatch.replica.watchdog import deathless

notice = threading.Event()
"""Event that is set once this process has received SIGTERM."""


def listen(die: Callable[[], None]) -> None:
    """Set `notice` when SIGTERM arrives, from now on. Call it in a worker's main thread.

    Args:
        die: Callback that ends this process if the thread that listens fails.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    deathless("preemption", functools.partial(_wait, reading), die)


def _wait(reading: int) -> None:
    while signal.SIGTERM not in os.read(reading, 64):
        pass
    notice.set()
