"""The identity of a process on this machine, by which a record of it tells whether it still runs."""

import os
from contextlib import suppress
from pathlib import Path

_ENDED = {"Z", "X"}  # zombies (proc(5)): their parent has not asked yet how they ended


def process_space() -> str:
    """What a process id is unique in: this boot of this machine, and its process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    with suppress(OSError):
        return f"{boot.read_text().strip()}/{os.stat(namespace).st_ino}"
    return ""


def started_at(pid: int) -> str:
    """When a process of this space began: no other with this id has the same, whatever the clocks do.

    Returns:
        Ticks since the boot; empty if no process with this id runs.
    """
    try:
        # The state is the first field after the name (proc(5)), which may hold blanks and brackets; the start the 20th.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in _ENDED else fields[19]
