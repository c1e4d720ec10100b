"""Background tasks of a replica never end silently."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Any, cast

import pytest
from support.small_job import LocalBoard, SmallJob, until

from magbatch.errors import LeaseError, StorageError
from magbatch.ledger.holder import LeaseToken
from magbatch.replica.board import Load, Order, Usage
from magbatch.replica.timing import TICK_S, Timing
from magbatch.replica.watchdog import Background, LeaseWatch, deathless
from magbatch.totals import Totals


class Deaf(LocalBoard):
    """A board whose reports fail in a way that nobody thought of."""

    async def report(self, replica: str, done: Totals, use: Usage, load: Load, rows: dict[int, list[str]]) -> Order:
        raise RuntimeError("no report")


@dataclass
class Cracked:
    """A lease that cannot be looked at, for a reason that nobody thought of."""

    root: str = "/nowhere"

    def is_lost(self) -> bool:
        raise RuntimeError("no lease")


def end_of(job: SmallJob, **options: Any) -> None:
    """Run a replica until it ends by itself, a row of it in the engine, and others finished."""

    async def work() -> None:
        engine = job.start_engine(hold=job.row_ids()[3:])
        shard = asyncio.create_task(job.run_shard(job.replica(engine, **options)))
        await until(lambda: job.deaths > 0, "the end of the replica")
        shard.cancel()
        await asyncio.gather(shard, return_exceptions=True)

    asyncio.run(work())


@pytest.fixture
def waiting(job: SmallJob) -> SmallJob:
    """A job whose finished rows wait for the clock."""
    job.ask(6)
    job.set("input", shard_rows=6)
    job.set("output", commit_interval_s=3600)
    job.begin()
    return job


def test_a_clock_that_breaks_ends_its_replica_with_a_word_and_what_is_finished_is_committed(
    waiting: SmallJob, capfd: pytest.CaptureFixture[str]
) -> None:
    waiting.board = Deaf()
    end_of(waiting)
    assert (waiting.deaths, waiting.board.gone, waiting.board.struck) == (1, ["replica"], [])
    assert waiting.done() == waiting.row_ids()[:3]
    said = str(waiting.board.state.snapshot().losses)
    assert "a defect in magbatch, its log has the traceback: RuntimeError: no report" in said
    assert "in _tick" in capfd.readouterr().err


def test_a_look_at_the_lease_that_breaks_ends_its_replica_with_a_word(waiting: SmallJob) -> None:
    end_of(waiting, token=Cracked(), timing=Timing(lease_interval_s=0.2))
    assert (waiting.deaths, waiting.board.gone) == (1, ["replica"])
    assert "RuntimeError: no lease" in str(waiting.board.state.snapshot().losses)
    assert waiting.done() == waiting.row_ids()[:3]


def test_a_commit_that_breaks_ends_its_replica_with_a_word(waiting: SmallJob) -> None:
    """Not by the rows in it, which fail alone, nor by the store's refusal."""
    waiting.set("output", commit_rows=1)
    end_of(waiting, token=Cracked(), timing=Timing(lease_interval_s=3600, lease_expiry_s=-1.0))
    assert (waiting.deaths, waiting.board.gone) == (1, ["replica"])
    assert "RuntimeError: no lease" in str(waiting.board.state.snapshot().losses)


def test_a_shard_that_is_cancelled_at_a_notice_leaves_no_place_taken(job: SmallJob) -> None:
    job.ask(4)
    job.set("input", shard_rows=4)
    job.engine["max_num_seqs"] = 1
    job.begin()
    notice = threading.Event()

    async def work() -> None:
        engine = job.start_engine(hold=job.row_ids())
        replica = job.replica(engine, notice=notice)
        shard = asyncio.create_task(job.run_shard(replica))
        await until(lambda: len(engine.inside) == 2, "the engine to be full")
        notice.set()
        await asyncio.sleep(3 * TICK_S)
        engine.release(job.row_ids()[0])  # its place falls free, and the next row, which has it, waits for the end
        await asyncio.sleep(3 * TICK_S)
        assert len(engine.order) == 2
        assert replica._admission.rows == 2
        shard.cancel()
        await asyncio.gather(shard, return_exceptions=True)
        await asyncio.sleep(0)
        assert (replica._admission.rows, replica._admission.bytes) == (0, 0)

    asyncio.run(work())


def test_a_thread_that_must_not_end_ends_the_process_with_it(capfd: pytest.CaptureFixture[str]) -> None:
    died = threading.Event()

    def broken() -> None:
        raise ValueError("a part is missing")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda _: None)  # of this test's process, which goes on
        deathless("clock", broken, died.set).join()
    assert died.is_set()
    assert "ValueError: a part is missing" in capfd.readouterr().err
    died.clear()
    deathless("clock", lambda: None, died.set).join()
    assert not died.is_set()


# The lease alone.


@dataclass
class Scripted:
    """A lease whose checks have these outcomes, one after the other."""

    outcomes: list[bool | Exception]
    root: str = "/somewhere"
    checks: int = 0

    def is_lost(self) -> bool:
        outcome = self.outcomes[min(self.checks, len(self.outcomes) - 1)]
        self.checks += 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def watch(lease: Scripted, died: list[str], **timing: float) -> LeaseWatch:
    waited: list[StorageError] = []
    return LeaseWatch(cast(LeaseToken, lease), 0.0, waited.append, lambda: died.append("died"), Timing(**timing))


def test_a_fresh_lease_needs_no_check_and_a_stale_one_needs_one_for_all_commits() -> None:
    lease, died = Scripted([False]), list[str]()

    async def play() -> None:
        await watch(lease, died, lease_expiry_s=60.0).confirm()
        assert lease.checks == 0
        stale = watch(lease, died, lease_expiry_s=0.05)
        await asyncio.sleep(0.06)
        await asyncio.gather(*(stale.confirm() for _ in range(8)))
        assert lease.checks == 1

    asyncio.run(play())
    assert died == []


def test_a_lease_that_is_lost_ends_the_process_and_commits_nothing() -> None:
    died = list[str]()
    with pytest.raises(LeaseError, match="/somewhere: another run has taken over the output"):
        asyncio.run(watch(Scripted([True]), died, lease_expiry_s=-1.0).confirm())
    assert died == ["died"]


def test_a_store_that_is_away_is_an_error_of_a_commit_and_none_of_the_watch() -> None:
    away, died = StorageError("503", passing=True), list[str]()
    with pytest.raises(StorageError, match="503"):
        asyncio.run(watch(Scripted([away]), died, lease_expiry_s=-1.0).confirm())
    lease = Scripted([away, False, away, True])
    with pytest.raises(LeaseError):
        asyncio.run(watch(lease, died, lease_interval_s=0.001).watch())
    assert (lease.checks, died) == (4, ["died"])


def test_the_first_error_of_background_tasks_is_handed_on_and_a_cancelled_task_is_none(
    capfd: pytest.CaptureFixture[str],
) -> None:
    errors: list[Exception] = []

    async def fail(text: str) -> None:
        raise ValueError(text)

    async def play() -> None:
        background = Background(errors.append)
        waiting = background.start(asyncio.Event().wait())  # type: ignore[arg-type]
        await asyncio.sleep(0)
        waiting.cancel()
        tasks = [background.start(fail(text)) for text in ("first", "second")]
        await asyncio.gather(waiting, *tasks, return_exceptions=True)

    asyncio.run(play())
    assert [str(error) for error in errors] == ["first"]
    assert "ValueError: first" in capfd.readouterr().err
