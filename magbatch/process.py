"""The identity of a process on this machine: a stored record shows whether the process still runs."""

import os
from contextlib import suppress
from pathlib import Path

_ENDED = {"Z", "X"}  # states of ended processes that their parent has not reaped (proc(5))


def process_space() -> str:
    """The space in which a process id is unique: this boot of this machine, and its process namespace.

    Returns:
        Boot id and inode of the namespace; empty if /proc does not show them.
    """
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    with suppress(OSError):
        return f"{boot.read_text().strip()}/{os.stat(namespace).st_ino}"
    return ""


def started_at(pid: int) -> str:
    """Start time of a process. Together with the id it identifies the process, even if clocks are changed.

    Returns:
        Clock ticks since the boot; empty if no process with this id runs.
    """
    try:
        # The name may hold blanks and brackets. After it, field 1 is the state and field 20 the start time (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in _ENDED else fields[19]
