"""Observers of the fleets of a run: progress, log, lease and dead letters see each snapshot."""

import time
from dataclasses import dataclass

from magbatch.errors import JobError
from magbatch.jobs.early_end import Failures
from magbatch.ledger.lease import Lease
from magbatch.replica.board import Snapshot
from magbatch.report.log import RunLog
from magbatch.report.terminal import ProgressLine
from magbatch.totals import Totals


@dataclass(frozen=True, slots=True)
class Observers:
    """Parts of a run that each snapshot of a fleet is shown to.

    Attributes:
        line: Progress line of the command.
        log: Log of the run.
        lease: Held lease on the output.
        failures: Dead letters compared with the limits; None if they never end the job.
    """

    line: ProgressLine
    log: RunLog
    lease: Lease
    failures: Failures | None


class Serving:
    """Observer of one fleet: measures how long it served, and ends it if the lease is lost or too many rows failed.

    Args:
        observers: Parts of the run that each snapshot is shown to.
        before: Rows committed by earlier fleets of this run.

    Attributes:
        since: Time when the first replica served (monotonic clock, seconds).
        until: Time when rows were last committed (monotonic clock, seconds).
    """

    def __init__(self, observers: Observers, before: Totals) -> None:
        self._to, self._before = observers, before
        self.since = self.until = time.monotonic()
        self._started, self._rows = False, 0

    def watch(self, snapshot: Snapshot) -> JobError | None:
        """Observe a snapshot of the fleet; see `FleetObserver.watch`."""
        if not self._started and not snapshot.starting:
            self._started, self.since = True, time.monotonic()
        if snapshot.done.rows != self._rows:
            self._rows, self.until = snapshot.done.rows, time.monotonic()
        self._to.line.progress.observe(snapshot)
        self._to.log.observe(snapshot)
        self._to.line.show()
        self._to.lease.check()
        failures = self._to.failures
        return None if failures is None else failures.check(self._before.plus(snapshot.done), snapshot)

    def say(self, message: str) -> None:
        """Show a message of the fleet; see `FleetObserver.say`."""
        self._to.line.say(message)
