"""A report holds what is new since the last one, and its answer is obeyed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from support.small_job import LocalBoard, SmallJob, WatchedEngine

from magbatch.engines.base import EngineLoad
from magbatch.errors import StorageError
from magbatch.replica.announced import Announced
from magbatch.replica.board import Load, Order, Usage
from magbatch.replica.commits import Commits
from magbatch.replica.departure import Departure
from magbatch.replica.in_flight import InFlight
from magbatch.replica.reports import Refusals, Reports
from magbatch.replica.timing import Timing
from magbatch.replica.watchdog import Background, LeaseWatch
from magbatch.totals import Totals


class Keeping(LocalBoard):
    """A board that keeps the reports, and answers with an order."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[tuple[Totals, Usage, Load, dict[int, list[str]]]] = []
        self.order = Order.NONE

    async def report(self, replica: str, done: Totals, usage: Usage, load: Load, rows: dict[int, list[str]]) -> Order:
        self.reports.append((done, usage, load, rows))
        return self.order


class Pressed(WatchedEngine):
    preempted = 0

    def load(self) -> EngineLoad:
        return EngineLoad(preemptions=self.preempted)


@dataclass
class Desk:
    board: Keeping
    engine: Pressed
    announced: Announced
    refusals: Refusals
    departure: Departure
    reports: Reports
    stops: list[str] = field(default_factory=list)


@pytest.fixture
def desk(job: SmallJob) -> Callable[[], Desk]:
    """Made within a running loop, as a replica is."""

    def make() -> Desk:
        board, engine, refusals, timing = Keeping(), Pressed(job.start_engine()), Refusals(), Timing()
        lease = LeaseWatch(None, 0.0, refusals.add, lambda: None, timing)
        commits = Commits(job.spec().output, 4, lease, Background(lambda error: None))
        stops: list[str] = []
        departure = Departure(board, None, lambda: stops.append("stop"), timing)
        announced = Announced("one", board)
        reports = Reports(
            "one", board, engine,
            commits=commits, in_flight=InFlight(None), announced=announced, refusals=refusals, departure=departure,
        )  # fmt: skip
        return Desk(board, engine, announced, refusals, departure, reports, stops)

    return make


def test_counts_are_reported_once(desk: Callable[[], Desk]) -> None:
    async def play() -> None:
        one = desk()
        one.engine.preempted = 5
        one.reports.add_idle(0.5)
        one.reports.add_idle(0.25)
        one.refusals.add(StorageError("503"))
        one.refusals.add(StorageError("504"))
        await one.announced.send(3, ["a"])
        await one.reports.send()
        one.engine.preempted = 7
        await one.reports.send()
        await one.reports.send()
        usages = [usage for _, usage, _, _ in one.board.reports]
        assert usages == [Usage(short_s=0.75, preemptions=5, commit_retries=2), Usage(preemptions=2), Usage()]
        assert one.board.reports[0][3] == {3: ["a"]}

    asyncio.run(play())


def test_a_refusal_is_told_once_with_its_newest_words(desk: Callable[[], Desk]) -> None:
    async def play() -> None:
        one = desk()
        await one.reports.send_refusal()
        assert one.board.state.snapshot().trouble is None
        one.refusals.add(StorageError("503"))
        one.refusals.add(StorageError("504"))
        await one.reports.send_refusal()
        await one.reports.send_refusal()
        assert one.board.state.snapshot().trouble == (1, "the output's storage refuses, trying again: 504")

    asyncio.run(play())


def test_an_order_is_obeyed(desk: Callable[[], Desk]) -> None:
    async def play() -> None:
        one = desk()
        one.board.order = Order.STOP
        await one.reports.send()
        assert (one.stops, one.departure.is_stopped) == (["stop"], True)

    asyncio.run(play())
