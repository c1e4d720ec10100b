"""The inside of a replica without its rows: real parts, and a finished row that waits for its commit."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pytest
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, Step
from magbatch.pipeline.write import ObjectWriter
from magbatch.replica.announced import Announced
from magbatch.replica.clock import Clock
from magbatch.replica.commits import Attempt, Commits
from magbatch.replica.departure import Departure
from magbatch.replica.ending import Ending
from magbatch.replica.in_flight import InFlight
from magbatch.replica.reports import Refusals, Reports
from magbatch.replica.timing import Timing
from magbatch.replica.watchdog import Background, LeaseWatch
from magbatch.rows import DeadLetter

QUICK = Timing(notice_s=0.05, notice_wait_s=0.001, tick_s=0.001, report_interval_s=0.005)


@dataclass
class Inside:
    """Parts of a replica, with durations of milliseconds.

    Attributes:
        deaths: Calls of `die`.
        stops: Calls that abort the rows in the engine.
    """

    job: SmallJob
    timing: Timing = QUICK
    notice: threading.Event = field(default_factory=threading.Event)
    deaths: int = 0
    stops: int = 0

    def __post_init__(self) -> None:
        spec, board = self.job.spec(), self.job.board
        board.state.join("one", "actor")
        self.background = Background(lambda error: self.ending.with_defect(error))
        refusals = Refusals()
        lease = LeaseWatch(None, 0.0, refusals.add, self.die, self.timing)
        self.commits = Commits(spec.output, 4, lease, self.background)
        self.in_flight = InFlight(spec.limits.row_timeout_s)
        self.departure = Departure(board, self.notice, self.stop, self.timing)
        self.reports = Reports(
            "one", board, self.job.start_engine(),
            commits=self.commits, in_flight=self.in_flight, announced=Announced("one", board),
            refusals=refusals, departure=self.departure,
        )  # fmt: skip
        self.ending = Ending(
            "one", board,
            commits=self.commits, in_flight=self.in_flight, reports=self.reports, departure=self.departure,
            background=self.background, die=self.die, timing=self.timing,
        )  # fmt: skip
        self.clock = Clock(
            spec, 4,
            commits=self.commits, in_flight=self.in_flight, reports=self.reports, departure=self.departure,
            ending=self.ending, background=self.background, timing=self.timing,
        )  # fmt: skip

    def die(self) -> None:
        self.deaths += 1

    def stop(self) -> None:
        self.stops += 1

    def finish(self, row_id: str = "r") -> Attempt:
        """A finished row, which waits for its commit."""
        writer = ObjectWriter(self.job.ledger.store, pa.table({"id": ["x"]}), {row_id: 0}, "m", 0)
        attempt = Attempt(0, writer)
        attempt.add(DeadLetter(row_id, Step.RENDER, ErrorCode.MISSING_VALUE, "?"))
        self.commits.attempts.add(attempt)
        return attempt


@pytest.fixture
def inside(job: SmallJob) -> Callable[..., Inside]:
    """Made within a running loop, as a replica is."""
    job.ask(1)

    def make(timing: Timing = QUICK) -> Inside:
        return Inside(job, timing)

    return make
