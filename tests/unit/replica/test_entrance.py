"""Shards enter in order, one at a time; of those that wait, one is unpacked."""

import asyncio
import gc
import weakref

import pyarrow as pa
import pytest
from support.small_job import SmallJob, until

from magbatch.pipeline.block import ShardPrompts
from magbatch.pipeline.write import ObjectWriter
from magbatch.replica.commits import Attempt
from magbatch.replica.entrance import Entrance
from magbatch.replica.losses import LossReason


class Entering:
    """An entrance, and the shards that were unpacked and begun."""

    def __init__(self, job: SmallJob) -> None:
        job.begin()
        self.job = job
        self.entrance = Entrance(job.board, job.ledger, 0.0)
        self.unpacked: list[int] = []
        self.begun: list[tuple[int, int]] = []
        self.kept: list[weakref.ref[ShardPrompts]] = []

    def unpack(self, shard: int) -> ShardPrompts:
        self.unpacked.append(shard)
        return Prompts(shard, [], [], pa.table({"id": ["x"]}), {"r": 0})

    def begin(self, prompts: ShardPrompts, done: frozenset[str]) -> Attempt:
        self.begun.append((prompts.shard, len(done)))
        self.kept.append(weakref.ref(prompts))
        writer = ObjectWriter(self.job.ledger.store, prompts.carried, prompts.positions, "m", prompts.shard)
        return Attempt(prompts.shard, writer)

    async def enter(self, shard: int, door: asyncio.Event, *, may_have_rows: bool = False) -> dict[str, int]:
        entry = self.entrance.enter(shard, lambda: self.unpack(shard), self.begin, may_have_rows=may_have_rows)
        async with entry as (attempt, strikes):
            assert attempt.shard == shard
            await door.wait()
            return strikes


class Prompts(ShardPrompts):
    """A shard that weak references can watch, to see what keeps it alive."""

    __slots__ = ("__weakref__",)


@pytest.fixture
def three(job: SmallJob) -> Entering:
    job.ask(6)
    job.set("input", shard_rows=2)
    return Entering(job)


def test_a_shard_enters_when_the_one_before_has_and_its_prompts_are_not_kept(three: Entering) -> None:
    async def play() -> None:
        doors = [asyncio.Event() for _ in range(3)]
        tasks = [asyncio.create_task(three.enter(shard, doors[shard])) for shard in range(3)]
        await until(lambda: three.unpacked == [0, 1], "the next shard to be unpacked")
        await asyncio.sleep(0.01)  # a third would be unpacked by now
        assert (three.unpacked, three.begun) == ([0, 1], [(0, 0)])
        gc.collect()
        assert three.kept[0]() is None
        for door in doors:
            door.set()
        assert await asyncio.gather(*tasks) == [{}, {}, {}]

    asyncio.run(play())
    assert three.begun == [(0, 0), (1, 0), (2, 0)]


def test_committed_rows_are_asked_for_if_there_may_be_some(three: Entering) -> None:
    job = three.job
    asyncio.run(job.run_shard(job.replica(), 0))
    three.job.board.state.strike("dead", {1: [job.row_ids()[2]]}, LossReason.ENGINE_DIED, "?")

    async def play() -> None:
        door = asyncio.Event()
        door.set()
        await three.enter(0, door)  # the second attempt of the run
        assert await three.enter(1, door, may_have_rows=True) == {job.row_ids()[2]: 1}

    asyncio.run(play())
    assert three.begun == [(0, 2), (1, 0)]


def test_a_shard_that_cannot_be_unpacked_leaves_its_turn_to_the_next(three: Entering) -> None:
    async def play() -> None:
        door = asyncio.Event()
        door.set()

        def broken() -> ShardPrompts:
            raise ValueError("no block")

        with pytest.raises(ValueError, match="no block"):
            async with three.entrance.enter(0, broken, three.begin, may_have_rows=False):
                pass
        await three.enter(1, door)

    asyncio.run(play())
    assert three.begun == [(1, 0)]
