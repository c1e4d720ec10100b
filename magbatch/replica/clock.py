"""The clock of a replica: due commits, reports, hanging rows, and the end of a node."""

import asyncio
import time

from magbatch.replica.commits import Commits
from magbatch.replica.departure import Departure
from magbatch.replica.ending import Ending
from magbatch.replica.in_flight import InFlight
from magbatch.replica.losses import LossReason
from magbatch.replica.reports import Reports
from magbatch.replica.timing import Timing
from magbatch.replica.watchdog import Background
from magbatch.spec import JobSpec


class Clock:
    """Background task that ticks a few times a second and starts whatever is due.

    Args:
        spec: Spec of the job, for `limits.row_timeout_s` and the commit interval.
        slots: Rows that the engine works on at once.
        commits: Finished rows and their commits.
        in_flight: Rows inside the engine.
        reports: Reports to the board.
        departure: Whether and why the replica is about to end.
        ending: The ways in which the replica ends.
        background: Tasks of the replica.
        timing: Intervals of ticks and reports, and the notice of a node's end, in seconds.
    """

    def __init__(
        self,
        spec: JobSpec,
        slots: int,
        *,
        commits: Commits,
        in_flight: InFlight,
        reports: Reports,
        departure: Departure,
        ending: Ending,
        background: Background,
        timing: Timing,
    ) -> None:
        self._spec, self._slots, self._timing = spec, slots, timing
        self._commits, self._in_flight, self._reports = commits, in_flight, reports
        self._departure, self._ending, self._background = departure, ending, background
        self._has_begun = False

    def start(self) -> None:
        """Start to tick, and to watch the lease; later calls do nothing."""
        if not self._has_begun:
            self._has_begun = True
            self._background.start(self._tick())
            self._background.start(self._commits.watch_lease())

    async def report(self) -> None:
        """Report to the board now."""
        await self._reports.send()

    async def _tick(self) -> None:
        reported = ticked = time.monotonic()
        while True:
            await asyncio.sleep(self._timing.tick_s)
            now = time.monotonic()
            if self._departure.takes_rows and self._has_free_slots:
                self._reports.add_idle(now - ticked)
            ticked = now
            await self._departure.check_notice(now)
            self._commit_due(now)
            await self._leave_if_due(now)
            await self._reports.send_refusal()
            if self._in_flight.check(now):
                patience = f"{self._spec.limits.row_timeout_s:,.0f} s (limits.row_timeout_s)"
                self._ending.with_engine(LossReason.ENGINE_HUNG, patience)
            if now - reported >= self._timing.report_interval_s:
                reported = now
                await self._reports.send()

    @property
    def _has_free_slots(self) -> bool:
        return self._in_flight.requests * self._spec.sampling.n < self._slots

    def _commit_due(self, now: float) -> None:
        """Commit attempts that have waited long enough; all of them once the replica is about to end."""
        for attempt in self._commits.attempts:
            if self._departure.since is not None or now - attempt.since >= self._spec.output.commit_interval_s:
                self._commits.commit_soon(attempt)

    async def _leave_if_due(self, now: float) -> None:
        """End or stop a replica whose time for the rows in its engine is over."""
        departure = self._departure
        if departure.since is None or departure.is_stopped:
            return
        late = departure.is_late(now)
        if late and not departure.is_recalled:
            await self._ending.now(LossReason.NODE_GOES)
        if departure.is_recalled and (late or not len(self._in_flight)):
            departure.stop()  # its shards end with the rows that are left, and Ray lets the actor go
