"""A spec with a schedule, as a scheduler keeps it: its running tick, its pending look, the time of its next look."""

import subprocess
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from magbatch.schedule.look import Look
from magbatch.schedule.ticks import upcoming
from magbatch.spec import JobSpec, ScheduleSpec

FIRST_WAIT = timedelta(minutes=1)  # wait after a failed run; doubled after each further failure
LONGEST_WAIT = timedelta(hours=1)  # longest wait after failed runs
MISTAKE_FAILURES = 4  # a mistake in a spec waits as long as 4 failures (16 minutes): a person has to correct it


@dataclass(frozen=True, slots=True)
class RunningTick:
    """Tick whose process runs.

    Attributes:
        process: Process of the tick, with a process group of its own.
        tick: The tick (UTC).
    """

    process: "subprocess.Popen[bytes]"
    tick: datetime

    def __str__(self) -> str:
        return f"the run of {self.tick.isoformat()}"


@dataclass(frozen=True, slots=True)
class EndedTick:
    """Tick whose process ended.

    Attributes:
        tick: The tick (UTC).
        code: Exit code of the process; for a signal, its negative number.
        reason: Reason why it did not complete, as the process gave it; empty if it gave none.
    """

    tick: datetime
    code: int
    reason: str

    def __str__(self) -> str:
        return f"the run of {self.tick.isoformat()}"

    @property
    def because(self) -> str:
        """The reason in brackets; empty if there is none."""
        return f" ({self.reason})" if self.reason else ""


@dataclass(slots=True)
class ScheduledJob:
    """A spec with a schedule.

    Attributes:
        path: File of the spec.
        spec: The spec.
        schedule: Schedule of the job.
        stamp: Modification time (ns) and size (bytes) of the file when it was read.
        wake: Time of the next look at its output.
        running: Tick that runs; None if no tick runs.
        failures: Consecutive runs that failed.
        look: Pending look at its output; None if there is none.
        ended: Tick that ended, while `look` reads whether it is complete.
    """

    path: str
    spec: JobSpec
    schedule: ScheduleSpec
    stamp: tuple[int, int]
    wake: datetime
    running: RunningTick | None = None
    failures: int = 0
    look: "Look[Any] | None" = None
    ended: EndedTick | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a tick runs, or its end is not judged yet."""
        return self.running is not None or self.ended is not None

    def wait(self, now: datetime, *, mistake: bool = False) -> None:
        """Put off the next look after a failure: 1 minute, then 2, 4 and so on up to an hour.

        The wait ends at the next tick at the latest, so that a failing run does not delay later runs.

        Args:
            now: Current time (UTC).
            mistake: Whether a person has to correct the cause.
        """
        if mistake:
            self.failures = max(self.failures, MISTAKE_FAILURES)
        wait = now + min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self.failures, 10))
        self.wake = min(filter(None, [upcoming(self.schedule, now), wait]))
        self.failures += 1
