"""A notice or a recall closes the engine to new rows; a stop aborts those inside."""

import asyncio
import threading

import pytest
from support.small_job import LocalBoard

from magbatch.replica.board import Order
from magbatch.replica.departure import Departure
from magbatch.replica.timing import Timing

TIMING = Timing(notice_s=10.0, tick_s=0.001)


class Leaving:
    """A departure, and how often rows were aborted."""

    def __init__(self) -> None:
        self.board, self.notice, self.aborts = LocalBoard(), threading.Event(), 0
        self.departure = Departure(self.board, self.notice, self.abort, TIMING)

    def abort(self) -> None:
        self.aborts += 1

    @property
    def trouble(self) -> str:
        return str(self.board.state.snapshot().trouble)


def test_a_notice_closes_the_engine_once_and_tells_the_board() -> None:
    leaving = Leaving()
    departure = leaving.departure

    async def play() -> None:
        await departure.check_notice(100.0)
        assert departure.takes_rows
        leaving.notice.set()
        await departure.check_notice(101.0)
        await departure.check_notice(105.0)

    asyncio.run(play())
    assert (departure.since, departure.is_recalled, departure.takes_rows, leaving.aborts) == (101.0, False, False, 0)
    assert "a node is about to go" in leaving.trouble
    assert (departure.is_late(111.0), departure.is_late(111.1)) == (False, True)


def test_a_recall_closes_the_engine_and_a_stop_aborts_once() -> None:
    leaving = Leaving()
    departure = leaving.departure

    async def play() -> None:
        await departure.obey(Order.NONE, 1.0)
        assert departure.takes_rows
        await departure.obey(Order.GIVE_BACK, 2.0)
        await departure.obey(Order.GIVE_BACK, 3.0)
        assert (departure.since, departure.is_recalled) == (2.0, True)
        await departure.obey(Order.STOP, 4.0)
        await departure.obey(Order.STOP, 5.0)

    asyncio.run(play())
    assert (departure.is_stopped, leaving.aborts) == (True, 1)
    assert "another job gets these devices" in leaving.trouble


def test_a_row_waits_at_a_notice_until_a_stop() -> None:
    leaving = Leaving()
    departure = leaving.departure

    async def play() -> None:
        await departure.wait()  # nothing to wait for
        departure.since = 1.0
        waiting = asyncio.create_task(departure.wait())
        await asyncio.sleep(0.005)
        assert not waiting.done()
        departure.stop()
        await asyncio.wait_for(waiting, 10)

    asyncio.run(play())


@pytest.mark.parametrize("order", [Order.NONE, Order.GIVE_BACK])
def test_a_stopped_replica_is_not_recalled(order: Order) -> None:
    leaving = Leaving()
    leaving.departure.stop()
    asyncio.run(leaving.departure.obey(order, 1.0))
    assert (leaving.departure.since, leaving.departure.is_recalled) == (None, False)
