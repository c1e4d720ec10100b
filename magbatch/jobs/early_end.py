"""When dead letters end a job early: more of them than the spec allows, or nothing else at all.

What is finished is committed first, and the same command goes on once the limit allows it.
"""

import time
from collections.abc import Callable

from magbatch.counts import counted
from magbatch.errors import ErrorCode, TooManyFailedError
from magbatch.replica.board import Snapshot, State
from magbatch.spec import JobSpec
from magbatch.totals import Totals

FLOOR_ROWS = 100  # fewer are too few to tell a share by, or that all rows fail
MANY_ROWS = 1000  # as many, asked in vain, are enough of a job of any size
# Input is sorted: what fails first may be one folder of it. Rows that were asked have cost something; others are free.
ASKED_SHARE, OTHER_SHARE = 0.01, 0.1
IDLE_S = 3600.0  # engines that wait for so long for a first row to answer are paid for in vain
SETTLE_S = 2.0  # after two commit intervals: rows that were answered meanwhile are committed by then
# Rows that fail so late failed no sooner than others were answered. All other codes may come before any answer can.
LATE = {ErrorCode.ANSWER_INVALID, ErrorCode.ROW_TIMEOUT}
ASKED = LATE | {ErrorCode.ENGINE_REJECTED, ErrorCode.ENGINE_KILLER}


class Failures:
    """The dead letters of one job, held against what its spec allows.

    Args:
        spec: The job.
        planned: Its rows.
        answered: Rows that earlier runs have answered.
        failed: Dead letters of earlier runs.
        explained: Says what the dead letters are, in a sentence; is asked once, when the job is to end.
    """

    def __init__(
        self,
        spec: JobSpec,
        planned: int,
        answered: int = 0,
        failed: int = 0,
        explained: Callable[[], str] = lambda: "",
    ) -> None:
        self._explained = explained
        self._limit, self._allowed = spec.limits.max_failed_rows, spec.limits.failed_allowed(planned)
        self._planned, self._answered, self._failed = planned, answered, failed
        self._settle_s = 2 * spec.output.commit_interval_s + SETTLE_S
        self._alike_since: float | None = None
        self._vain_since: float | None = None

    def look(self, done: Totals, snapshot: Snapshot) -> TooManyFailedError | None:
        """Why the job is to end early; None while it is not.

        Args:
            done: What this run has committed.
            snapshot: Its fleet.
        """
        if self._answered + self._failed + done.rows >= self._planned:
            return None  # it ends by itself
        if self._allowed is not None:
            return self._too_many(done, self._allowed)
        if not self._all_alike(done, snapshot):
            self._alike_since = None
            return None
        self._alike_since = self._alike_since or time.monotonic()
        if time.monotonic() - self._alike_since < self._settle_s:
            return None
        (code,) = done.by_code
        return TooManyFailedError(
            f"all of the first {done.failed:,} rows failed, each with the code {code}, and none was answered; the rest "
            f"is not asked. {self._explained()}. Mend the cause; to go on all the same, set limits.max_failed_rows "
            "(100% allows any number)"
        )

    def _too_many(self, done: Totals, allowed: int) -> TooManyFailedError | None:
        failed = self._failed + done.failed
        share = isinstance(self._limit, str)
        if failed <= allowed or (share and self._answered + self._failed + done.rows < FLOOR_ROWS):
            return None
        of = f", {self._limit} of {self._planned:,}" if share else ""
        return TooManyFailedError(
            f"{counted(failed, 'row')} failed, more than limits.max_failed_rows allows ({allowed:,}{of}); the rest is "
            f"not asked. {self._explained()}. What is finished is committed: raise the limit, and the same command "
            "goes on"
        )

    def _all_alike(self, done: Totals, snapshot: Snapshot) -> bool:
        """Whether all that is known of the job's rows is that they fail with one code."""
        if self._answered or done.answered or len(done.by_code) != 1:
            self._vain_since = None
            return False
        self._vain_since = self._vain_since or time.monotonic()
        if done.failed < self._enough(done):
            return False
        loads = [slot.load for slot in snapshot.slots if slot.state == State.SERVING]
        on_the_way = sum(load.in_flight + load.waiting for load in loads)
        return done.failed >= on_the_way if LATE.issuperset(done.by_code) else not on_the_way

    def _enough(self, done: Totals) -> float:
        """Rows that are enough to tell that all of the job will fail, and not the part of it that sorts first."""
        idle_s = time.monotonic() - (self._vain_since or time.monotonic())
        if ASKED.issuperset(done.by_code) or idle_s >= IDLE_S:
            return min(MANY_ROWS, max(FLOOR_ROWS, ASKED_SHARE * self._planned))
        return max(FLOOR_ROWS, OTHER_SHARE * self._planned)
