"""The clock commits what is due, reports, and ends a replica whose time is over."""

import asyncio
from typing import Any

from support.small_job import SmallJob, until

from magbatch.replica.losses import LossReason
from magbatch.replica.timing import Timing


def test_a_finished_row_is_committed_when_it_is_due_and_reported(inside: Any, job: SmallJob) -> None:
    job.set("output", commit_interval_s=0.01)

    async def play() -> None:
        replica = inside()
        replica.finish()
        replica.clock.start()
        replica.clock.start()  # nothing more
        await until(lambda: job.board.state.snapshot().done.rows == 1, "a report of the commit")

    asyncio.run(play())
    assert job.done("errors") == ["r"]


def test_a_row_that_is_not_due_waits_unless_the_node_goes(inside: Any, job: SmallJob) -> None:
    job.set("output", commit_interval_s=3600)

    async def play() -> None:
        replica = inside()
        replica.finish()
        replica.clock.start()
        await until(lambda: job.board.state.snapshot().replicas == 1, "a report")
        assert job.done("errors") == []
        replica.notice.set()
        await until(lambda: replica.deaths > 0, "the end at a notice")

    asyncio.run(play())
    assert job.done("errors") == ["r"]
    assert LossReason.NODE_GOES in str(job.board.state.snapshot().losses)


def test_free_slots_are_counted_while_rows_may_enter(inside: Any, job: SmallJob) -> None:
    async def play() -> None:
        replica = inside()
        replica.clock.start()
        await until(lambda: job.board.state.snapshot().slots[0].usage.short_s > 0, "idle seconds")
        replica.departure.stop()
        await replica.clock.report()
        before = job.board.state.snapshot().slots[0].usage.short_s
        await asyncio.sleep(0.02)
        await replica.clock.report()
        assert job.board.state.snapshot().slots[0].usage.short_s == before

    asyncio.run(play())


def test_an_engine_that_hangs_ends_the_replica_and_strikes_its_rows(inside: Any, job: SmallJob) -> None:
    job.set("limits", row_timeout_s=0.01)

    async def play() -> None:
        replica = inside()
        with replica.in_flight.watch(replica.in_flight.enter(2, "stuck")):
            replica.clock.start()
            await until(lambda: replica.deaths > 0, "the end of the replica")

    asyncio.run(play())
    assert job.board.struck == [{2: ["stuck"]}]
    assert "its engine hung: no row got a token for 0 s (limits.row_timeout_s)" in str(
        job.board.state.snapshot().losses
    )


def test_a_recalled_replica_stops_as_soon_as_its_engine_is_empty(inside: Any, job: SmallJob) -> None:
    async def play() -> None:
        replica = inside(Timing(notice_s=3600, tick_s=0.001, report_interval_s=0.005))
        replica.clock.start()
        await until(lambda: job.board.state.snapshot().replicas == 1, "a report")
        replica.in_flight.enter(0, "running")
        assert job.board.state.give_back(1) == ["actor"]
        await until(lambda: replica.departure.is_recalled, "the order")
        assert replica.stops == 0
        replica.in_flight.leave("running")
        await until(lambda: replica.stops == 1, "the stop")
        assert replica.deaths == 0

    asyncio.run(play())


def test_a_recalled_replica_whose_time_is_over_stops_with_rows_inside_and_does_not_die(
    inside: Any, job: SmallJob
) -> None:
    async def play() -> None:
        replica = inside()
        replica.in_flight.enter(0, "running")
        replica.clock.start()
        await until(lambda: job.board.state.snapshot().replicas == 1, "a report")
        assert job.board.state.give_back(1) == ["actor"]
        await until(lambda: replica.stops == 1, "the stop")
        assert (replica.deaths, job.board.gone, len(replica.in_flight)) == (0, [], 1)

    asyncio.run(play())
