"""A process of its own for each tick: a crash ends neither the scheduler nor another job."""

import os
import subprocess
import sys
import tempfile
from datetime import datetime

from magbatch import guard

MAX_REASON_BYTES = 2000  # longest reason, shown in one line of the scheduler's log


class TickProcess(subprocess.Popen[bytes]):
    """A tick in a process group of its own. Its output goes to the standard error of this process.

    Args:
        path: File of the spec.
        tick: The tick (UTC).
    """

    def __init__(self, path: str, tick: datetime) -> None:
        command = [sys.executable, "-m", "magbatch", "schedule", "tick", path, "--at", tick.isoformat()]
        self._reason = tempfile.TemporaryFile()  # noqa: SIM115 - `reason` closes it
        descriptor = self._reason.fileno()
        super().__init__(
            command, stdout=2, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=[descriptor],
            env=os.environ | {guard.WHY_FD: str(descriptor), guard.UNATTENDED: "1"},
        )  # fmt: skip

    def reason(self) -> str:
        """Reason that the tick gave for not completing; empty if it gave none. Call it once, after the end."""
        with self._reason as file:
            file.seek(0)
            return " ".join(file.read(MAX_REASON_BYTES).decode(errors="replace").split())


def reason_of(process: "subprocess.Popen[bytes]") -> str:
    """Reason why a process did not complete its tick; empty if it gave none."""
    return process.reason() if isinstance(process, TickProcess) else ""
