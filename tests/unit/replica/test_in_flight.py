"""Only a row that has asked the engine for something can hang with it, or end it."""

import asyncio
from collections.abc import Callable

import pytest
from support.small_job import SmallJob, until

from magbatch.errors import EngineDeadError
from magbatch.replica.in_flight import InFlight, RowInFlight
from magbatch.replica.timing import TICK_S

SLOW_TO_CHECK = "x" * 40


@pytest.fixture
def slow(job: SmallJob) -> SmallJob:
    """Checking the answers of a0 and a1 takes much longer than the engine may give nothing."""
    job.ask(6)
    job.set("input", shard_rows=6)
    job.set("answer", extract=r"(?P<answer>(x+x+)+y|7)")
    job.set("limits", answer_timeout_s=3.0, row_timeout_s=1.0)
    job.engine["script"] = [
        {"contains": "a0?", "answer": SLOW_TO_CHECK},
        {"contains": "a1?", "answer": SLOW_TO_CHECK},
        {"contains": "What", "answer": "The answer: 7."},
    ]
    job.begin()
    return job


def test_an_engine_does_not_hang_while_answers_are_checked(slow: SmallJob) -> None:
    slow.answer()
    assert (slow.deaths, slow.board.struck, slow.board.gone) == (0, [], [])
    letters = {row["id"]: (row["step"], row["error_code"]) for row in slow.records("errors")}
    assert letters == dict.fromkeys(("a0", "a1"), ("check", "answer_invalid"))
    assert {row["id"]: row["extracted"] for row in slow.records()} == {f"a{row}": "7" for row in range(2, 6)}
    assert set(slow.asked().values()) == {1}


def test_a_request_after_a_long_check_has_its_time(slow: SmallJob) -> None:
    """Two rows are let in at once: the third begins when the engine has had nothing to do for long."""
    slow.engine["max_num_seqs"] = 1
    third = slow.row_ids()[2]

    async def work() -> None:
        engine = slow.start_engine(hold=[third])
        shard = asyncio.create_task(slow.run_shard(slow.replica(engine)))
        await until(lambda: third in engine.inside, "the third row in the engine")
        await asyncio.sleep(2 * TICK_S)  # a look at the engine, or two
        engine.release()
        assert await shard == 0

    asyncio.run(work())
    assert (slow.deaths, slow.board.struck) == (0, [])
    assert len(slow.done()) == 4


def test_an_engine_that_dies_accuses_no_row_whose_answer_is_checked(slow: SmallJob) -> None:
    slow.set("limits", answer_timeout_s=6.0, row_timeout_s=None)
    slow.engine["script"] = [{"contains": "a2?", "do": "die"}, *slow.engine["script"]]
    ids = slow.row_ids()

    async def work() -> None:
        engine = slow.start_engine(hold=ids[2:])
        shard = asyncio.create_task(slow.run_shard(slow.replica(engine)))
        await until(lambda: engine.inside == set(ids[2:]) and len(engine.order) == 6, "two answers to be checked")
        engine.release()
        await asyncio.gather(shard, return_exceptions=True)
        assert isinstance(shard.exception(), EngineDeadError)

    asyncio.run(work())
    (struck,) = slow.board.struck
    assert ids[2] in struck[0]
    assert not {ids[0], ids[1]} & set(struck[0])


# Rows alone, on a clock that the test moves.


class Clock:
    """The monotonic clock of the rows in flight."""

    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("magbatch.replica.in_flight.time.monotonic", lambda: clock.now)
    return clock


class Row:
    """A row of shard 0 whose task waits until it is cancelled."""

    def __init__(self, rows: InFlight, row_id: str) -> None:
        self.entered: RowInFlight | None = None

        async def wait() -> None:
            self.entered = rows.enter(0, row_id)
            await asyncio.Event().wait()

        self.task = asyncio.create_task(wait())

    async def begin(self, rows: InFlight) -> Callable[[], None]:
        await asyncio.sleep(0)
        assert self.entered is not None
        return rows.watch(self.entered).__enter__()

    @property
    def hangs(self) -> bool:
        assert self.entered is not None
        return self.entered.hangs


def test_a_row_hangs_only_if_others_go_on(clock: Clock) -> None:
    async def play() -> None:
        rows = InFlight(10.0)
        one, two = Row(rows, "one"), Row(rows, "two")
        first, second = await one.begin(rows), await two.begin(rows)
        assert (len(rows), rows.requests, rows.by_shard()) == (2, 2, {0: ["one", "two"]})
        first()
        second()
        clock.now += 8
        second()
        clock.now += 3
        assert not rows.check(clock.now)
        assert (one.hangs, two.hangs) == (True, False)  # the other got a token well after it did
        rows.leave("one")
        clock.now += 8
        assert rows.check(clock.now)  # no row got a token for longer than that

    asyncio.run(play())


def test_a_row_without_a_token_hangs_only_if_younger_rows_have_theirs(clock: Clock) -> None:
    async def play() -> None:
        rows = InFlight(10.0)
        early = Row(rows, "early")
        await early.begin(rows)
        running = Row(rows, "running")
        running_got = await running.begin(rows)
        for _ in range(3):
            clock.now += 5
            running_got()
            assert not rows.check(clock.now)
        assert not early.hangs  # it may wait for a slot
        late = Row(rows, "late")
        late_got = await late.begin(rows)
        late_got()
        running_got()
        assert not rows.check(clock.now)
        assert early.hangs

    asyncio.run(play())


def test_no_limit_and_no_request_are_never_a_hang(clock: Clock) -> None:
    async def play() -> None:
        for rows in (InFlight(None), InFlight(10.0)):
            row = Row(rows, "row")
            got = await row.begin(rows)
            got()
            if rows.check(clock.now + 9):
                raise AssertionError
            assert row.entered is not None
            row.entered.requests.clear()
            assert not rows.check(clock.now + 1000)
            assert not row.hangs

    asyncio.run(play())


def test_a_request_that_the_engine_died_with_stays_and_any_other_goes(clock: Clock) -> None:
    async def play() -> None:
        rows = InFlight(None)
        row = Row(rows, "row")
        await asyncio.sleep(0)
        assert row.entered is not None
        for error in (None, ValueError, asyncio.CancelledError):
            request = rows.watch(row.entered)
            request.__enter__()
            request.__exit__(error)
            assert rows.requests == 0
        request = rows.watch(row.entered)
        request.__enter__()
        request.__exit__(EngineDeadError)
        assert rows.by_shard() == {0: ["row"]}

    asyncio.run(play())
