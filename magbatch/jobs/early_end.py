"""Early end of a job: more rows failed than the spec allows, or all rows fail alike.

Finished rows are committed first. With a higher limit, the same command continues the job.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from magbatch.counts import counted
from magbatch.errors import ErrorCode, TooManyFailedError
from magbatch.replica.board import Snapshot, State
from magbatch.spec import JobSpec
from magbatch.totals import Totals

FLOOR_ROWS = 100  # fewest rows of which a share of failures means anything
MANY_ROWS = 1000  # failed rows that end a job of any size, if an engine was asked for them
# Shares of all rows that must fail. Input is often sorted, so the first rows may be one bad folder. Rows for which an
# engine was asked cost money, so few failures end the job. Rows that failed before that cost little, so more may fail.
ASKED_SHARE, OTHER_SHARE = 0.01, 0.1
# Error codes of rows that take as long as an answer. Rows with any other code may fail before the first answer.
LATE = frozenset({ErrorCode.ANSWER_INVALID, ErrorCode.ROW_TIMEOUT})
# Error codes of rows that an engine was asked for.
ASKED = LATE | {ErrorCode.ENGINE_REJECTED, ErrorCode.ENGINE_KILLER}


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of the decision, in seconds.

    Attributes:
        idle_s: Time without any answer after which the engines' cost counts as wasted.
        settle_s: Extra wait after two commit intervals, so that rows answered just now are committed.
    """

    idle_s: float = 3600.0
    settle_s: float = 2.0


class Failures:
    """Dead letters of a job, compared with the limits of its spec.

    Args:
        spec: Spec of the job, for its limits.
        planned: Rows of the job.
        answered: Rows answered by earlier runs.
        failed: Dead letters of earlier runs.
        explained: Returns a sentence about the dead letters. It is called once, when the job ends early.
        timing: Durations of the decision.
    """

    def __init__(
        self,
        spec: JobSpec,
        planned: int,
        answered: int = 0,
        failed: int = 0,
        explained: Callable[[], str] = lambda: "",
        timing: Timing = Timing(),
    ) -> None:
        self._explained, self._timing = explained, timing
        self._limit, self._allowed = spec.limits.max_failed_rows, spec.limits.failed_allowed(planned)
        self._planned, self._answered, self._failed = planned, answered, failed
        self._settle_s = 2 * spec.output.commit_interval_s + timing.settle_s
        self._enough_since: float | None = None
        self._unanswered_since: float | None = None

    def check(self, done: Totals, snapshot: Snapshot) -> TooManyFailedError | None:
        """Reason to end the job now; None to continue.

        With `limits.max_failed_rows`, the job ends when more rows than that have failed. Without it, the job ends when
        enough rows have failed, all with the same code, and no row was answered.

        Args:
            done: Rows committed by this run.
            snapshot: State of its fleet.
        """
        if self._answered + self._failed + done.rows >= self._planned:
            return None  # all rows are done
        if self._allowed is not None:
            return self._above_limit(done, self._allowed)
        if not self._all_fail_alike(done, snapshot):
            self._enough_since = None
            return None
        self._enough_since = self._enough_since or time.monotonic()
        if time.monotonic() - self._enough_since < self._settle_s:
            return None
        (code,) = done.by_code
        return TooManyFailedError(
            f"all of the first {done.failed:,} rows failed, each with the code {code}, and none was answered; "
            f"remaining rows will not be asked. {self._explained()}. Fix the cause; to continue all the same, set "
            "limits.max_failed_rows (100% allows any number)"
        )

    def _above_limit(self, done: Totals, allowed: int) -> TooManyFailedError | None:
        failed = self._failed + done.failed
        is_share = isinstance(self._limit, str)
        if failed <= allowed or (is_share and self._answered + self._failed + done.rows < FLOOR_ROWS):
            return None
        share = f", {self._limit} of {self._planned:,}" if is_share else ""
        return TooManyFailedError(
            f"{counted(failed, 'row')} failed, more than limits.max_failed_rows allows ({allowed:,}{share}); "
            f"remaining rows will not be asked. {self._explained()}. Finished rows are committed: raise the limit, "
            "then repeat the same command to continue"
        )

    def _all_fail_alike(self, done: Totals, snapshot: Snapshot) -> bool:
        """Whether enough rows failed, all with one code, and no row in flight or waiting could still be answered.

        Example: 600 rows failed, `_enough` says 500, and 200 rows are in engines or wait for them.

        1. The code is in LATE, such as `row_timeout`. Such failures take as long as answers, so answers would have come
           too. The 600 failures outnumber these 200 rows: True.
        2. The code is any other one. It may come before the first answer, so the 200 rows may still be answered: False.
        """
        if self._answered or done.answered or len(done.by_code) != 1:
            self._unanswered_since = None
            return False
        self._unanswered_since = self._unanswered_since or time.monotonic()
        if done.failed < self._enough(done):
            return False
        loads = [slot.load for slot in snapshot.slots if slot.state == State.SERVING]
        on_the_way = sum(load.in_flight + load.waiting for load in loads)
        return done.failed >= on_the_way if LATE.issuperset(done.by_code) else not on_the_way

    def _enough(self, done: Totals) -> float:
        """Number of failed rows that suggests that the whole job will fail, and not only the rows that come first.

        For a job of 50,000 rows: 500 rows for which an engine was asked (1%), or 5,000 rows that failed earlier (10%).
        After an hour without an answer, 500 rows are enough in both cases.
        """
        idle_s = time.monotonic() - (self._unanswered_since or time.monotonic())
        if ASKED.issuperset(done.by_code) or idle_s >= self._timing.idle_s:
            return min(MANY_ROWS, max(FLOOR_ROWS, ASKED_SHARE * self._planned))
        return max(FLOOR_ROWS, OTHER_SHARE * self._planned)
