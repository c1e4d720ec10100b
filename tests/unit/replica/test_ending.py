"""A replica ends with its finished rows committed, its reason on the board, and a dead process."""

import asyncio
from typing import Any

import pytest
from support.small_job import SmallJob

from magbatch.errors import StorageError
from magbatch.replica.losses import LossReason


def test_an_end_commits_reports_and_gives_its_reason(inside: Any, job: SmallJob) -> None:
    async def play() -> None:
        replica = inside()
        replica.finish()
        await replica.ending.now(LossReason.NODE_GOES)
        assert (replica.deaths, replica.commits.waiting) == (1, 0)

    asyncio.run(play())
    snapshot = job.board.state.snapshot()
    assert job.done("errors") == ["r"]
    assert snapshot.done.rows == 1  # the last report counts the last commit
    assert job.board.gone == ["one"]
    assert LossReason.NODE_GOES in str(snapshot.losses)


def test_a_dead_engine_strikes_the_rows_in_it_once(inside: Any, job: SmallJob) -> None:
    async def play() -> None:
        replica = inside()
        row = replica.in_flight.enter(3, "killer")
        with replica.in_flight.watch(row):
            replica.in_flight.enter(3, "checked")  # no request of it is in the engine
            task = replica.ending.with_engine(LossReason.ENGINE_DIED, "oops")
            assert replica.ending.with_engine(LossReason.ENGINE_DIED, "again") is task
            await task
        assert replica.deaths == 1

    asyncio.run(play())
    assert job.board.struck == [{3: ["killer"]}]
    assert job.board.gone == ["one"]


def test_an_engine_that_its_node_took_strikes_no_row(inside: Any, job: SmallJob) -> None:
    async def play() -> None:
        replica = inside()
        with replica.in_flight.watch(replica.in_flight.enter(3, "innocent")):
            replica.notice.set()
            await replica.ending.with_engine(LossReason.ENGINE_DIED, "oops")
        assert replica.deaths == 1

    asyncio.run(play())
    assert job.board.struck == []
    assert LossReason.NODE_GOES in str(job.board.state.snapshot().losses)


def test_a_defect_ends_the_replica_even_if_the_commits_have_it(
    inside: Any, job: SmallJob, capfd: pytest.CaptureFixture[str]
) -> None:
    async def play() -> None:
        replica = inside()
        replica.finish()

        async def broken() -> None:
            raise LookupError("in the commits")

        replica.commits.commit_all = broken

        async def fail() -> None:
            raise RuntimeError("a part is missing")

        replica.background.start(fail())
        while not replica.deaths:
            await asyncio.sleep(0.001)

    asyncio.run(play())
    assert job.board.gone == ["one"]
    assert "RuntimeError: a part is missing" in str(job.board.state.snapshot().losses)
    assert "LookupError: in the commits" in capfd.readouterr().err


def test_a_store_that_refuses_does_not_stop_the_end(inside: Any, job: SmallJob) -> None:
    async def play() -> None:
        replica = inside()
        attempt = replica.finish()

        def refuse(rows: object) -> None:
            raise StorageError("403")

        attempt.writer.commit = refuse
        await replica.ending.now(LossReason.NODE_GOES)
        assert (replica.deaths, replica.commits.waiting) == (1, 1)

    asyncio.run(play())
    assert job.board.gone == ["one"]
