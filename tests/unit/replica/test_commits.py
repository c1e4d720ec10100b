"""Finished rows and a store that is away, and rows that no object can hold."""

import asyncio
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest
from support.small_job import SmallJob, WatchedEngine, until

from magbatch.errors import LeaseError, StorageError
from magbatch.ledger.holder import LeaseToken
from magbatch.ledger.lease import Lease
from magbatch.ledger.verify import verify
from magbatch.replica.timing import Timing
from magbatch.rows import Generation, Prompt
from magbatch.storage import open_store
from magbatch.storage.disk import LocalStore

SOON = Timing(lease_interval_s=0.1, lease_expiry_s=0.3)


class Lying(WatchedEngine):
    """An engine that counts more cached tokens for some rows than their column can hold."""

    async def generate(self, prompt: Prompt, **options: Any) -> Generation:
        generation = await self.engine.generate(prompt, **options)
        return replace(generation, cached_tokens=1 << 40) if prompt.row_id in self.hold else generation


def test_a_row_that_no_object_can_hold_is_a_dead_letter_and_ends_no_job(either_job: SmallJob) -> None:
    job = either_job
    job.ask(20)
    job.set("input", shard_rows=10)
    job.begin()
    ids = job.row_ids()
    bad = {ids[0], ids[4], ids[17]}

    async def work() -> None:
        assert await job.run_all(job.replica(Lying(job.start_engine(), hold=bad))) == [0, 0]

    asyncio.run(work())
    assert job.done() == sorted(set(ids) - bad)
    letters = job.records("errors")
    assert {(row["row_id"], row["step"], row["error_code"]) for row in letters} == {
        (row_id, "write", "internal") for row_id in bad
    }
    assert all(row["id"] and row["message"].startswith("results cannot hold the row: ") for row in letters)
    assert job.asked() == dict.fromkeys(ids, 1)
    assert job.finalise() == []
    assert verify(job.ledger).problems == ()


@dataclass
class Away:
    """A disk that is away for a while: each of its calls is refused in a way that may pass."""

    seconds: float
    patch: pytest.MonkeyPatch
    refused: int = 0
    until: float = 0.0

    def begin(self) -> None:
        self.until = time.monotonic() + self.seconds
        for call in ("write", "list", "read"):
            self.patch.setattr(LocalStore, call, self._refusing(getattr(LocalStore, call)))

    def _refusing(self, real: Any) -> Any:
        def refusing(store: LocalStore, *args: Any) -> Any:
            if time.monotonic() < self.until:
                self.refused += 1
                raise StorageError("503", passing=True)
            return real(store, *args)

        return refusing


def test_a_store_that_is_away_for_longer_than_a_lease_lasts_ends_no_job(
    job: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is ten times as long; rows of several shards finish before it."""
    job.ask(12)
    job.set("input", shard_rows=3)
    job.begin()
    away = Away(3.0, monkeypatch)

    async def work(token: LeaseToken) -> None:
        engine = job.start_engine(hold=job.row_ids()[3:])
        shards = asyncio.create_task(job.run_all(job.replica(engine, token=token, timing=SOON)))
        await until(lambda: len(job.done()) == 3, "the first shard to be committed")
        await until(lambda: len(engine.inside) == 8, "others in the engine")
        away.begin()
        await asyncio.sleep(0.6)  # the lease was last seen longer ago than it lasts
        engine.release()
        assert await shards == [0, 0, 0, 0]

    lease = Lease(open_store(job.output), print)
    with lease.acquire():
        asyncio.run(work(lease.token))
    assert away.refused > 4
    assert job.done() == sorted(job.row_ids())
    assert (job.deaths, job.board.gone) == (0, [])
    assert "the output's storage refuses, trying again: 503" in str(job.board.state.snapshot().trouble)


def test_patience_ends_nevertheless(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.ask(3)
    job.set("input", shard_rows=3)
    job.set("output", patience_s=0.5)
    job.begin()

    async def work(token: LeaseToken) -> None:
        engine = job.start_engine(hold=job.row_ids())
        shard = asyncio.create_task(job.run_shard(job.replica(engine, token=token, timing=SOON)))
        await until(lambda: len(engine.inside) == 3, "the rows in the engine")
        Away(60.0, monkeypatch).begin()
        await asyncio.sleep(0.6)
        engine.release()
        with pytest.raises(StorageError, match="503"):
            await shard

    lease = Lease(open_store(job.output), print)
    with lease.acquire():
        asyncio.run(work(lease.token))
        monkeypatch.undo()


def test_a_refusal_is_forgotten_once_a_commit_goes_well(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are let in later must not meet the error of a commit long ago, whose rows are in the store by now."""
    job.ask(8)
    job.set("input", shard_rows=8)
    job.set("output", patience_s=0, commit_interval_s=0.05)
    job.engine["max_num_seqs"] = 1
    job.begin()
    ids = job.row_ids()
    away = Away(3600.0, monkeypatch)

    async def work() -> None:
        engine = job.start_engine(hold=ids[1:])
        shard = asyncio.create_task(job.run_shard(job.replica(engine)))
        await until(lambda: len(job.done()) == 1, "the first commit")
        await until(lambda: engine.order == ids[:3], "no more room in the engine")
        away.begin()
        engine.release(ids[1])
        await until(lambda: away.refused > 0, "a commit that is refused")
        away.until = 0.0
        await until(lambda: len(job.done()) == 2, "the commit that goes well")
        engine.release()
        assert await shard == 0

    asyncio.run(work())
    assert job.done() == sorted(ids)


def test_a_replica_whose_run_was_taken_over_commits_nothing_more(job: SmallJob) -> None:
    job.ask(4)
    job.set("input", shard_rows=4)
    job.begin()
    begun = threading.Event()

    async def work(token: LeaseToken) -> list[Any]:
        engine = job.start_engine(hold=job.row_ids())
        timing = Timing(lease_interval_s=3600, lease_expiry_s=0.2)
        shard = asyncio.create_task(job.run_shard(job.replica(engine, token=token, timing=timing)))
        await until(lambda: len(engine.inside) == 4, "the rows in the engine")
        begun.set()
        job.put("output/_magbatch/lease-00000009.json", b"{}")
        await asyncio.sleep(0.3)
        engine.release()
        return await asyncio.gather(shard, return_exceptions=True)

    lease = Lease(open_store(job.output), print)
    with lease.acquire():
        outcomes = asyncio.run(work(lease.token))
    assert [type(one) for one in outcomes] == [LeaseError]
    assert job.deaths > 0
    assert job.done() == []
