import asyncio
import functools
import gc
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from support.small_job import LocalBoard, SmallJob, WatchedEngine, until

from magbatch.engines.base import UNCONSTRAINED, EngineLoad, OnTokens, RequestShape
from magbatch.errors import EngineDeadError, StorageError
from magbatch.fleet.board import BoardState
from magbatch.ledger.verify import verify
from magbatch.pipeline.block import ShardPrompts, from_block, to_block
from magbatch.replica.board import Load
from magbatch.replica.entrance import SHARDS_AHEAD
from magbatch.replica.losses import LossReason
from magbatch.replica.replica import Replica
from magbatch.replica.timing import REPORT_INTERVAL_S, TICK_S, Timing
from magbatch.rows import Generation, Prompt
from magbatch.schema import ObjectName
from magbatch.storage.disk import LocalStore
from magbatch.storage.s3 import s3_client

NEVER_S = 3600.0  # a commit interval that no test lives to see


def sizes(job: SmallJob) -> list[int]:
    """Rows in each object of results/."""
    parts = [ObjectName.parse(name) for name in job.objects()]
    return sorted(part.rows for part in parts if part is not None)


def codes(job: SmallJob) -> dict[str, str]:
    """Step and code of each dead letter, by row id."""
    return {row["row_id"]: f"{row['step']} {row['error_code']}" for row in job.records("errors")}


# Every row ends in one object


def test_every_row_of_a_shard_ends_in_one_object(either_job: SmallJob) -> None:
    either_job.ask(6, question=["What?", None, "Who?", "", "Why?", "When?"])
    either_job.set("input", shard_rows=6)
    either_job.answer()
    ids = either_job.row_ids()
    assert either_job.done() == [ids[0], ids[2], ids[4], ids[5]]
    assert codes(either_job) == {ids[1]: "render missing_value", ids[3]: "render missing_value"}
    for row in either_job.records():
        assert row["answer"] in row["reasoning"]
        assert row["id"] in ("a0", "a2", "a4", "a5")
        assert row["model"] == "builtin:tiny"
        assert (row["sample"], row["reasoning_status"], row["finish_reason"]) == (0, "complete", "stop")
    assert either_job.ledger.done_counts(either_job.plan).tolist() == [6]


def test_a_shard_of_failed_rows_alone_is_committed(job: SmallJob) -> None:
    job.ask(4, question=[None] * 4)
    job.put("input/b.parquet", b"no Parquet")
    job.set("input", on_bad_file="dead_letter", shard_rows=10)
    job.answer()
    assert sorted(codes(job)) == sorted(job.row_ids())
    assert job.asked() == {}


def test_every_sample_of_a_row_is_in_the_same_object(job: SmallJob) -> None:
    job.ask(5)
    job.set("sampling", n=3)
    job.answer()
    assert [(row["row_id"], row["sample"]) for row in job.records()] == [
        (row_id, sample) for row_id in job.row_ids() for sample in range(3)
    ]
    assert sum(sizes(job)) == 5


def test_many_shards_are_answered_at_once_and_each_in_its_own_objects(job: SmallJob) -> None:
    job.ask(60)
    job.set("input", shard_rows=3)
    job.answer()
    assert job.done() == sorted(job.row_ids())
    planned = {row_id: shard.index for shard in job.plan.shards() for row_id in shard.row_ids()}
    for name in job.objects():
        part = ObjectName.parse(name)
        assert part is not None
    assert job.ledger.done_counts(job.plan).tolist() == [3] * 20
    assert {job.ledger.done_rows(shard) for shard in range(20)} == {
        frozenset(row_id for row_id, index in planned.items() if index == shard) for shard in range(20)
    }


def test_the_board_hears_of_what_was_committed(job: SmallJob) -> None:
    job.ask(9, question=[None if row < 2 else "What is it?" for row in range(9)])
    job.engine["script"] = [{"contains": "What", "do": "never_close"}]
    job.set("sampling", n=2)
    job.answer()
    done = job.board.state.snapshot().done
    records = job.records()
    assert (done.answered, done.failed, done.by_status) == (7, 2, {"truncated": 14})
    assert done.prompt_tokens == sum(row["prompt_tokens"] for row in records) // 2
    assert done.reasoning_tokens == sum(row["reasoning_tokens"] for row in records) > 0
    assert done.answer_tokens == sum(row["answer_tokens"] for row in records) == 0


def test_the_board_hears_how_a_replica_is_while_it_works(job: SmallJob) -> None:
    job.ask(20)
    job.set("input", shard_rows=20)
    job.begin()
    ids = job.row_ids()

    async def work() -> None:
        engine = job.start_engine(hold=ids)
        shard = asyncio.create_task(job.run_shard(job.replica(engine)))

        def load() -> Load:
            slots = job.board.state.snapshot().slots
            return slots[0].load if slots else Load()

        await until(lambda: load().in_flight == 8, "twice the slots to be let in")
        assert load().waiting == 11, "the next one is let in as soon as there is room"
        engine.release(*ids[:16])
        await until(lambda: load().in_flight == 4, "the rest to be in flight")
        assert (load().waiting, load().engine) == (0, EngineLoad())
        engine.release()
        await shard

    asyncio.run(work())


def test_the_board_hears_what_committing_took(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.ask(9, question=[None if row < 2 else "What is it?" for row in range(9)])
    refusals = iter([True, True])
    write = LocalStore.write

    def refuse_twice(self: LocalStore, name: str, data: bytes) -> None:
        if name.startswith("results/") and next(refusals, False):
            raise StorageError("503", passing=True)
        write(self, name, data)

    monkeypatch.setattr(LocalStore, "write", refuse_twice)
    job.answer()
    (place,) = job.board.state.snapshot().slots
    objects = [item for kind in ("results", "errors") for item in job.ledger.store.list(f"{kind}/")]
    assert place.usage.commits == sum(place.usage.by_commit.values()) == len(objects)
    assert place.usage.commit_bytes == sum(item.size for item in objects)
    assert place.usage.commit_retries == 2
    assert place.usage.commit_ms > 0
    assert place.done == job.ledger.totals(job.ledger.object_names())


def test_free_slots_and_preemptions_are_counted(job: SmallJob) -> None:
    job.ask(3)
    job.set("input", shard_rows=3)
    job.begin()
    board = job.board.state = BoardState(rows=100)

    class Pressed(WatchedEngine):
        preempted = 5

        def load(self) -> EngineLoad:
            return EngineLoad(preemptions=self.preempted)

    async def work() -> None:
        engine = Pressed(job.start_engine(), hold=job.row_ids()[:1])
        shard = asyncio.create_task(job.run_shard(job.replica(engine)))
        await until(lambda: board.snapshot().starved_s > 1, "one row in four slots to be seen")
        assert board.snapshot().slots[0].usage.preemptions == 5
        engine.preempted = 7
        engine.release()
        await shard
        assert board.snapshot().slots[0].usage.preemptions == 7

    asyncio.run(work())


def test_full_slots_starve_nobody(job: SmallJob) -> None:
    job.ask(12)
    job.set("input", shard_rows=12)
    job.begin()
    board = job.board.state = BoardState(rows=1000)

    class Busy(WatchedEngine):
        async def generate(self, prompt: Prompt, *, on_tokens: OnTokens | None = None, **options: Any) -> Generation:
            await released.wait()
            return await self.engine.generate(prompt, on_tokens=on_tokens, **options)

    released = asyncio.Event()

    async def work() -> None:
        shard = asyncio.create_task(job.run_shard(job.replica(Busy(job.start_engine()))))
        await until(lambda: bool(board.snapshot().slots) and board.snapshot().slots[0].load.in_flight == 8, "work")
        before = board.snapshot().starved_s
        await asyncio.sleep(4 * TICK_S + REPORT_INTERVAL_S)
        assert board.snapshot().starved_s == before
        released.set()
        await shard

    asyncio.run(work())


# In the order in which they finish


def test_a_straggler_keeps_no_neighbour_from_being_committed(job: SmallJob) -> None:
    job.ask(5)
    job.set("input", shard_rows=5)
    job.begin()
    long = job.row_ids()[1]

    async def work() -> None:
        engine = job.start_engine(hold=[long])
        shard = asyncio.create_task(job.run_shard(job.replica(engine)))
        await until(lambda: len(job.ledger.done_rows(0)) == 4, "the neighbours of the straggler to be committed")
        assert long not in job.ledger.done_rows(0)
        assert not shard.done()
        engine.release()
        assert await shard == 0

    asyncio.run(work())
    assert job.done() == sorted(job.row_ids())


def test_a_full_batch_of_finished_rows_waits_for_no_clock(job: SmallJob) -> None:
    job.ask(8)
    job.set("input", shard_rows=8)
    job.set("output", commit_interval_s=NEVER_S, commit_rows=3)
    job.begin()

    async def work() -> None:
        engine = job.start_engine(hold=[job.row_ids()[0]])
        shard = asyncio.create_task(job.run_shard(job.replica(engine)))
        await until(lambda: len(job.ledger.done_rows(0)) >= 6, "two batches to be committed")
        engine.release()
        await shard

    asyncio.run(work())
    assert job.done() == sorted(job.row_ids())
    assert sizes(job)[-1] <= 6  # a batch takes what finished while the one before was written


def test_fewer_finished_rows_wait_for_the_clock_or_the_end(job: SmallJob) -> None:
    job.ask(8)
    job.set("input", shard_rows=8)
    job.set("output", commit_interval_s=NEVER_S, commit_rows=100)
    job.begin()
    long = job.row_ids()[0]

    async def work() -> None:
        engine = job.start_engine(hold=[long])
        shard = asyncio.create_task(job.run_shard(job.replica(engine)))
        await until(lambda: len(engine.order) == 8 and engine.inside == {long}, "seven rows to be finished")
        await asyncio.sleep(3 * TICK_S)  # the clock has looked at them
        assert job.objects() == []
        engine.release()
        await shard

    asyncio.run(work())
    assert sizes(job) == [8]


def test_shards_held_open_by_stragglers_leave_the_engine_to_others(job: SmallJob) -> None:
    job.ask(24)
    job.set("input", shard_rows=3)
    job.engine["max_num_seqs"] = 5
    job.begin()
    long = {shard.row_ids()[0] for shard in job.plan.shards()}

    async def work() -> None:
        engine = job.start_engine(hold=long)
        everything = asyncio.create_task(job.run_all(job.replica(engine)))
        await until(lambda: len(job.done()) == 16, "every row but the straggler of each shard to be committed")
        assert engine.inside == long
        engine.release()
        assert set(await everything) == {0}

    asyncio.run(work())
    assert job.done() == sorted(job.row_ids())


# Admission


def test_the_engine_is_asked_for_twice_its_slots_and_no_more(job: SmallJob) -> None:
    job.ask(60)
    job.set("input", shard_rows=5)
    job.engine |= {"max_num_seqs": 3, "token_s": 0.0001}
    job.begin()

    async def work() -> WatchedEngine:
        engine = job.start_engine()
        await job.run_all(job.replica(engine))
        return engine

    assert asyncio.run(work()).most == 6
    assert job.done() == sorted(job.row_ids())


def test_the_board_is_told_of_few_shards_before_their_turn(job: SmallJob) -> None:
    """Shards that have not begun need no look into the ledger after their replica died."""
    job.ask(40)
    job.set("input", shard_rows=4)
    job.engine["max_num_seqs"] = 2
    job.begin()

    async def work() -> None:
        engine = job.start_engine(hold=job.row_ids())
        replica = job.replica(engine)
        shards = [
            asyncio.create_task(replica.run(shard, lambda shard=shard: job.prompts(shard), may_have_rows=False))  # type: ignore[misc]
            for shard in range(10)
        ]
        await until(lambda: len(engine.inside) == 4, "the engine to be full")
        await asyncio.sleep(0.05)
        first = [(await job.board.begin(shard))[0] for shard in range(10)]
        assert first == [False] * (2 + SHARDS_AHEAD) + [True] * (8 - SHARDS_AHEAD)
        engine.release()
        await asyncio.gather(*shards)

    asyncio.run(work())
    assert job.done() == sorted(job.row_ids())


def test_what_a_zombie_commits_while_a_shard_waits_for_its_turn_is_not_asked_again(job: SmallJob) -> None:
    job.ask(12)
    job.set("input", shard_rows=4)
    job.engine["max_num_seqs"] = 2
    job.begin()
    ids = job.row_ids()

    async def work() -> list[str]:
        engine = job.start_engine(hold=ids)
        replica, zombie = job.replica(engine), job.replica(name="zombie")
        shards = [
            asyncio.create_task(replica.run(shard, lambda shard=shard: job.prompts(shard), may_have_rows=True))  # type: ignore[misc]
            for shard in range(3)
        ]
        await until(lambda: len(engine.inside) == 4, "the engine to be full")
        await asyncio.sleep(0.05)  # the last shard is unpacked
        await zombie.run(2, lambda: job.prompts(2), may_have_rows=False)
        engine.release()
        await asyncio.gather(*shards)
        return engine.order

    assert asyncio.run(work()) == ids[:8]
    assert job.done() == sorted(ids)


def test_a_shard_is_unpacked_while_the_one_before_it_enters_and_not_before(job: SmallJob) -> None:
    job.ask(20)
    job.set("input", shard_rows=4)
    job.engine["max_num_seqs"] = 2
    job.begin()
    admitted_before: list[set[str]] = []

    async def work() -> None:
        engine = job.start_engine(hold=job.row_ids())
        replica = job.replica(engine)

        def unpack(shard: int) -> ShardPrompts:
            admitted_before.append(set(engine.order))
            return job.prompts(shard)

        shards = [
            asyncio.create_task(replica.run(shard, lambda shard=shard: unpack(shard), may_have_rows=False))  # type: ignore[misc]
            for shard in range(5)
        ]
        await until(lambda: len(engine.inside) == 4, "the engine to be full")
        await asyncio.sleep(0.05)  # what would be unpacked without need is unpacked by now
        assert len(admitted_before) == 3  # one is in the engine, one at its door, and the next is ready
        engine.release()
        await asyncio.gather(*shards)

    asyncio.run(work())
    for shard, before in enumerate(admitted_before):
        assert {row_id for one in range(shard - 1) for row_id in job.plan.shard(one).row_ids()} <= before
    assert job.done() == sorted(job.row_ids())


def test_a_straggler_keeps_only_its_own_prompt_in_memory(job: SmallJob) -> None:
    job.ask(8)
    job.set("input", shard_rows=8)
    job.begin()
    ids = set(job.row_ids())
    block = to_block(job.preparer(job.plan.shard(0)))

    def alive() -> list[str]:
        gc.collect()
        return [one.row_id for one in gc.get_objects() if type(one) is Prompt and one.row_id in ids]

    async def work() -> None:
        long = job.row_ids()[3]
        engine = job.start_engine(hold=[long])
        unpack = functools.partial(next, from_block(block))  # as the actor hands it over
        shard = asyncio.create_task(job.replica(engine).run(0, unpack, may_have_rows=False))
        del unpack
        await until(lambda: len(job.done()) == 7, "the neighbours of the straggler to be committed")
        assert alive() == [long]
        engine.release()
        await shard

    asyncio.run(work())


def test_finished_rows_that_fill_the_memory_are_committed_before_more_are_admitted(job: SmallJob) -> None:
    """Neither the clock nor a full batch would commit these: the bound does, or the engine would stand still."""
    job.ask(27)
    job.set("input", shard_rows=9)
    job.set("output", commit_interval_s=NEVER_S, commit_rows=10)
    job.engine["max_num_seqs"] = 2  # 16 finished rows may wait
    job.begin()

    async def work() -> None:
        engine = job.start_engine(hold=[shard.row_ids()[0] for shard in job.plan.shards()])
        everything = asyncio.create_task(job.run_all(job.replica(engine)))
        await until(lambda: len(engine.order) == 27, "every row to be let into the engine")
        engine.release()
        await everything

    asyncio.run(work())
    assert job.done() == sorted(job.row_ids())


def test_dead_letters_of_earlier_steps_do_not_stop_admission(job: SmallJob) -> None:
    job.set("output", commit_interval_s=NEVER_S, commit_rows=1)
    job.ask(21, question=[None] * 20 + ["What?"])
    job.set("input", shard_rows=30)
    job.engine["max_num_seqs"] = 1
    job.begin()

    async def work() -> None:
        assert await asyncio.wait_for(job.run_shard(job.replica()), 30) == 0

    asyncio.run(work())
    assert (len(job.done()), len(codes(job))) == (1, 20)


# What the engine does to a row


def test_a_row_that_the_engine_refuses_is_a_dead_letter(job: SmallJob) -> None:
    job.ask(5)
    job.engine["script"] = [{"contains": "a3", "do": "reject"}]
    job.answer()
    ids = job.row_ids()
    assert codes(job) == {ids[3]: "generate engine_rejected"}
    assert job.done() == sorted(set(ids) - {ids[3]})
    (letter,) = job.records("errors")
    assert (letter["id"], letter["message"]) == ("a3", "the script rejects this prompt")


class Faulty(WatchedEngine):
    """An engine with a defect that one row meets."""

    defect: BaseException = ZeroDivisionError("a defect")

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        if prompt.row_id in self.hold:
            raise self.defect
        return await super().generate(prompt, max_tokens=max_tokens, seed=seed, on_tokens=on_tokens, form=form)


def test_a_defect_that_one_row_meets_spares_its_neighbours(job: SmallJob) -> None:
    job.ask(5)
    job.begin()
    ids = job.row_ids()

    async def work() -> None:
        replica = job.replica(Faulty(job.start_engine(), hold=[ids[2]]))
        assert set(await job.run_all(replica)) == {0}

    asyncio.run(work())
    assert codes(job) == {ids[2]: "generate internal"}
    assert job.records("errors")[0]["message"] == "ZeroDivisionError: a defect"
    assert job.done() == sorted(set(ids) - {ids[2]})


class PanicException(BaseException):
    """A BaseException, which nothing catches as an `Exception`."""


def test_a_panic_that_one_row_meets_spares_its_neighbours(job: SmallJob) -> None:
    job.ask(5)
    job.begin()
    ids = job.row_ids()

    async def work() -> None:
        engine = Faulty(job.start_engine(), hold=[ids[2]])
        engine.defect = PanicException("index out of bounds")
        assert set(await job.run_all(job.replica(engine))) == {0}

    asyncio.run(work())
    assert codes(job) == {ids[2]: "generate internal"}
    assert job.done() == sorted(set(ids) - {ids[2]})


# Going on


def test_rows_that_are_committed_are_never_asked_again(either_job: SmallJob) -> None:
    job = either_job
    job.ask(9, question=[None if row == 4 else f"What is {row}?" for row in range(9)])
    job.set("input", shard_rows=9)
    job.begin()
    ids = job.row_ids()

    async def until_stopped() -> None:
        engine = job.start_engine(hold=[ids[1], ids[7]])
        replica = job.replica(engine)
        shard = asyncio.create_task(job.run_shard(replica))
        await until(lambda: len(job.ledger.done_rows(0)) == 7, "the other rows to be committed")
        replica.stop()
        assert await shard == 2

    async def go_on(may_have_rows: bool) -> None:
        assert await job.run_shard(job.replica(name="another"), may_have_rows=may_have_rows) == 0

    asyncio.run(until_stopped())
    assert job.done() == sorted(set(ids) - {ids[1], ids[4], ids[7]})
    asyncio.run(go_on(may_have_rows=False))  # the same run: the board knows that the shard was begun
    job.board = LocalBoard()
    asyncio.run(go_on(may_have_rows=True))  # another run: the driver knows that the shard was touched
    assert job.done() == sorted(set(ids) - {ids[4]})
    assert codes(job) == {ids[4]: "render missing_value"}
    assert job.done("errors") == [ids[4]]
    assert job.asked() == dict.fromkeys(set(ids) - {ids[4]}, 1)  # the held ones never reached the fake


def test_a_first_attempt_asks_the_ledger_for_nothing(job: SmallJob) -> None:
    job.ask(3)
    job.begin()
    job.put("output/results/00000000-abc-0000.n3.parquet", b"nobody reads this")

    async def work() -> None:
        await job.run_shard(job.replica(), may_have_rows=False)

    asyncio.run(work())
    assert len(job.objects()) == 2


def test_a_stop_commits_what_is_finished_and_leaves_the_rest(job: SmallJob) -> None:
    job.ask(40)
    job.set("input", shard_rows=10)
    job.set("output", commit_interval_s=NEVER_S)
    job.engine["max_num_seqs"] = 4
    job.begin()
    ids = job.row_ids()

    async def work() -> None:
        engine = job.start_engine(hold=ids[6:])
        replica = job.replica(engine)
        shards = asyncio.create_task(job.run_all(replica))
        await until(lambda: len(engine.order) == 14, "six rows to be finished and eight to be in the engine")
        assert job.done() == []
        replica.stop()
        assert await shards == [4, 10, 10, 10]
        assert engine.inside == set()
        assert await job.run_shard(replica, 3) == 10  # what comes after is left as well

    asyncio.run(work())
    assert job.done() == sorted(ids[:6])
    job.board = LocalBoard()
    job.answer()
    assert job.done() == sorted(ids)
    assert set(job.asked().values()) == {1}


def test_the_board_asks_a_replica_to_stop(job: SmallJob) -> None:
    job.ask(6)
    job.set("input", shard_rows=3)
    job.begin()
    job.board.state.stop()

    async def work() -> None:
        engine = job.start_engine(hold=job.row_ids()[3:])
        assert await job.run_all(job.replica(engine)) == [0, 3]

    asyncio.run(work())
    assert job.done() == sorted(job.row_ids()[:3])


def test_a_stop_at_the_very_moment_a_row_is_let_in_leaves_no_place_taken(job: SmallJob) -> None:
    job.ask(6)
    job.set("input", shard_rows=6)
    job.engine["max_num_seqs"] = 1
    job.begin()

    async def work() -> None:
        replica = job.replica()
        shard = asyncio.create_task(job.run_shard(replica))
        before = asyncio.all_tasks()
        loop = asyncio.get_running_loop()

        def watch() -> None:
            # Runs once in every turn of the loop, so that it sees the rows' tasks before their first step.
            fresh = [task for task in asyncio.all_tasks() - before if "_row" in repr(task.get_coro())]
            if fresh:
                replica.stop()
            else:
                loop.call_soon(watch)

        watch()
        assert await asyncio.wait_for(shard, 30) == 6

    asyncio.run(work())
    assert job.asked() == {}


# Engines die


def run_until_death(job: SmallJob, replica: Replica, *, may_have_rows: bool = False) -> list[Any]:
    async def work() -> list[Any]:
        shards = (job.run_shard(replica, shard, may_have_rows=may_have_rows) for shard in range(job.plan.num_shards))
        return await asyncio.gather(*shards, return_exceptions=True)

    return asyncio.run(work())


def test_an_engine_that_dies_ends_the_replica_once_and_names_the_rows_in_it(job: SmallJob) -> None:
    job.ask(24)
    job.set("input", shard_rows=8)
    job.set("output", commit_interval_s=NEVER_S)
    job.engine |= {"max_num_seqs": 3, "script": [{"contains": "a10", "do": "die"}]}
    job.begin()
    ids = job.row_ids()
    slow = {ids[3], ids[9]}

    async def work() -> None:
        engine = job.start_engine(hold=slow)
        replica = job.replica(engine)
        shards = [asyncio.create_task(job.run_shard(replica, shard)) for shard in range(3)]
        await until(lambda: job.deaths > 0, "the replica to end")
        engine.release()
        outcomes = await asyncio.gather(*shards, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {EngineDeadError}

    asyncio.run(work())
    assert job.deaths == 1
    assert job.board.gone == ["replica"]
    assert job.board.state.snapshot().engine_deaths == 1
    (struck,) = job.board.struck
    in_flight = {row_id for rows in struck.values() for row_id in rows}
    assert {*slow, ids[10]} <= in_flight
    assert len(in_flight) <= 6  # never more than were let in
    assert set(job.done()) & in_flight == set()
    assert set(ids[:3]) | set(ids[4:8]) <= set(job.done())  # what had finished was committed
    shard_of = {row_id: shard.index for shard in job.plan.shards() for row_id in shard.row_ids()}
    assert all(shard_of[row_id] == shard for shard, rows in struck.items() for row_id in rows)
    assert job.records("errors") == []


def test_a_row_that_kills_three_engines_is_a_dead_letter_and_its_neighbours_are_answered(job: SmallJob) -> None:
    job.ask(24)
    job.set("input", shard_rows=8)
    job.engine["script"] = [{"contains": "a10?", "do": "die"}]
    job.begin()
    ids = job.row_ids()
    for number in (1, 2, 3):
        outcomes = run_until_death(job, job.replica(name=f"replica {number}"), may_have_rows=True)
        assert EngineDeadError in {type(outcome) for outcome in outcomes}
        assert job.deaths == number
    assert run_until_death(job, job.replica(name="replica 4")) == [0, 0, 0]
    assert job.deaths == 3
    assert codes(job) == {ids[10]: "generate engine_killer"}
    assert job.done() == sorted(set(ids) - {ids[10]})
    assert job.asked()[ids[10]] == 3
    assert job.board.gone == ["replica 1", "replica 2", "replica 3"]


def test_innocent_rows_beside_two_killers_are_answered(job: SmallJob) -> None:
    """Suspects go one by one, so that each death names its killer alone."""
    job.ask(12)
    job.set("input", shard_rows=12)
    job.engine |= {"max_num_seqs": 6, "script": [{"contains": "a1?", "do": "die"}, {"contains": "a4?", "do": "die"}]}
    job.begin()
    ids = job.row_ids()
    for _ in range(8):
        if run_until_death(job, job.replica(), may_have_rows=True) == [0]:
            break
    assert codes(job) == dict.fromkeys([ids[1], ids[4]], "generate engine_killer")
    assert job.done() == sorted(set(ids) - {ids[1], ids[4]})
    assert job.deaths == 5  # one for both, then two for each


@pytest.mark.parametrize(("strikes", "together"), [(1, 4), (2, 1)])
def test_fewer_suspects_are_let_in_at_once_with_every_death(job: SmallJob, strikes: int, together: int) -> None:
    job.ask(24)
    job.set("input", shard_rows=24)
    job.engine["max_num_seqs"] = 32
    job.begin()
    for number in range(strikes):
        job.board.state.strike(f"dead {number}", {0: job.row_ids()}, LossReason.ENGINE_DIED, "oops")

    async def work() -> WatchedEngine:
        engine = job.start_engine(hold=job.row_ids())
        task = asyncio.create_task(job.run_shard(job.replica(engine), may_have_rows=True))
        await until(lambda: len(engine.inside) == together, "the first suspects")
        await asyncio.sleep(2 * TICK_S)
        engine.release()
        assert await task == 0
        return engine

    assert asyncio.run(work()).most == together
    assert job.done() == sorted(job.row_ids())


def test_an_engine_that_ends_with_its_node_accuses_no_row(job: SmallJob) -> None:
    """SIGTERM to a whole process group ends the engine a moment before the replica hears of it, or after."""
    job.ask(6)
    job.set("input", shard_rows=6)
    job.engine["script"] = [{"contains": "a3?", "do": "die"}]
    job.begin()
    notice = threading.Event()

    async def work() -> None:
        replica = job.replica(notice=notice)
        asyncio.get_running_loop().call_later(0.3, notice.set)
        await asyncio.gather(job.run_shard(replica, may_have_rows=True), return_exceptions=True)

    asyncio.run(work())
    assert job.deaths == 1
    assert job.board.struck == []
    assert job.board.gone == ["replica"]


# The process is about to be killed


def test_a_notice_commits_what_is_finished_and_lets_no_more_in(job: SmallJob) -> None:
    job.ask(20)
    job.set("input", shard_rows=20)
    job.set("output", commit_interval_s=NEVER_S)
    job.engine["max_num_seqs"] = 2
    job.begin()
    ids = job.row_ids()
    notice = threading.Event()

    async def work() -> None:
        engine = job.start_engine(hold=ids[3:])
        task = asyncio.create_task(job.run_shard(job.replica(engine, notice=notice)))
        await until(lambda: engine.order == ids[:7], "four rows in the engine, three finished")
        assert job.done() == []
        notice.set()
        await until(lambda: len(job.done()) == 3, "the commit of what is finished")
        engine.release()
        await until(lambda: len(job.done()) == 7, "the commit of all other rows")
        await asyncio.sleep(2 * TICK_S)
        assert engine.order == ids[:7], "rows that could not be finished were begun"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
    assert job.done() == ids[:7]
    assert job.deaths == 0
    assert job.board.struck == []


def test_a_replica_with_a_notice_ends_by_itself(job: SmallJob) -> None:
    job.ask(4)
    job.begin()
    notice = threading.Event()
    notice.set()

    async def work() -> None:
        engine = job.start_engine(hold=job.row_ids()[1:])
        task = asyncio.create_task(job.run_shard(job.replica(engine, notice=notice, timing=Timing(notice_s=0.5))))
        await until(lambda: job.deaths == 1, "the end of the replica")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
    assert job.board.gone == ["replica"]
    assert job.board.struck == [], "nothing was wrong with the rows in the engine"


def test_a_replica_that_is_recalled_commits_what_is_finished_and_leaves_the_rest(job: SmallJob) -> None:
    job.ask(20)
    job.set("input", shard_rows=20)
    job.set("output", commit_interval_s=NEVER_S)
    job.engine["max_num_seqs"] = 2
    job.begin()
    ids = job.row_ids()

    async def work() -> None:
        engine = job.start_engine(hold=ids[3:])
        task = asyncio.create_task(job.run_shard(job.replica(engine)))
        await until(lambda: engine.order == ids[:7], "four rows in the engine, three finished")
        job.board.state.join("replica", "actor")
        await until(lambda: job.board.state.snapshot().replicas == 1, "its first report")
        assert job.board.state.give_back(1) == ["actor"]
        await until(lambda: len(job.done()) == 3, "the commit of what is finished")
        assert not task.done(), "it has its time for what is in the engine"
        engine.release()
        assert await asyncio.wait_for(task, 10) == 13, "long before that time is over"

    asyncio.run(work())
    assert job.done() == ids[:7]
    assert set(job.asked().values()) == {1}
    assert (job.deaths, job.board.struck, job.board.gone) == (0, [], [])


def test_a_replica_that_is_recalled_waits_for_no_row_without_end(job: SmallJob) -> None:
    job.ask(4)
    job.begin()

    async def work() -> None:
        engine = job.start_engine(hold=job.row_ids()[1:])
        task = asyncio.create_task(job.run_shard(job.replica(engine, timing=Timing(notice_s=0.5))))
        job.board.state.join("replica", "actor")
        await until(lambda: job.board.state.snapshot().replicas == 1, "its first report")
        assert job.board.state.give_back(1) == ["actor"]
        assert await asyncio.wait_for(task, 10) == 3

    asyncio.run(work())
    assert job.done() == job.row_ids()[:1]


# Rows and engines hang


def test_a_row_that_hangs_while_others_go_on_is_given_up(job: SmallJob) -> None:
    job.ask(8)
    job.set("limits", row_timeout_s=1.0)
    job.engine |= {"max_num_seqs": 2, "token_s": 0.004, "script": [{"contains": "a3?", "do": "hang"}]}
    job.answer()
    ids = job.row_ids()
    (letter,) = job.records("errors")
    assert (letter["row_id"], letter["step"], letter["error_code"]) == (ids[3], "generate", "row_timeout")
    assert letter["message"] == "the engine gave the row no token for 1 s (limits.row_timeout_s)"
    assert job.done() == sorted(set(ids) - {ids[3]})
    assert (job.deaths, job.asked()[ids[3]]) == (0, 1)


def test_a_row_that_never_gets_a_first_token_is_given_up(job: SmallJob) -> None:
    """A request that an engine lost on its way in."""
    job.ask(60)
    job.set("limits", row_timeout_s=1.0)
    job.engine |= {"max_num_seqs": 2, "token_s": 0.002, "script": [{"contains": "a3?", "do": "stall"}]}
    job.answer()
    ids = job.row_ids()
    (letter,) = job.records("errors")
    assert (letter["row_id"], letter["error_code"]) == (ids[3], "row_timeout")
    assert job.done() == sorted(set(ids) - {ids[3]})
    assert job.deaths == 0


def test_rows_that_wait_for_a_slot_do_not_hang(job: SmallJob) -> None:
    """A single slot, and rows that wait for it much longer than a token may take."""
    job.ask(6)
    job.set("limits", row_timeout_s=0.5)
    job.engine |= {"max_num_seqs": 1, "token_s": 0.01}
    job.answer()
    assert job.done() == sorted(job.row_ids())
    assert job.deaths == 0


def test_an_engine_that_gives_no_row_a_token_is_as_good_as_dead(job: SmallJob) -> None:
    """Rows in a frozen engine get a strike; a row that freezes three engines is a dead letter, alone."""
    job.ask(6)
    job.set("limits", row_timeout_s=0.5)
    job.engine |= {"max_num_seqs": 6, "script": [{"contains": "a2?", "do": "freeze"}]}
    job.begin()
    ids = job.row_ids()

    async def work() -> None:
        """Shards hang with their engine, as they would in the process that now ends."""
        deaths = job.deaths
        replica = job.replica()
        shards = [asyncio.create_task(job.run_shard(replica, shard, may_have_rows=True)) for shard in range(2)]
        await until(lambda: job.deaths > deaths or all(shard.done() for shard in shards), "the end of the replica")
        for shard in shards:
            shard.cancel()
        await asyncio.gather(*shards, return_exceptions=True)

    for _ in range(4):
        asyncio.run(work())
    assert job.deaths == 3
    assert codes(job) == {ids[2]: "generate engine_killer"}
    assert job.done() == sorted(set(ids) - {ids[2]})


def test_a_replica_without_rows_waits_for_ever(job: SmallJob) -> None:
    """Also after rows were aborted: they are no longer in the engine."""
    job.ask(4)
    job.set("limits", row_timeout_s=0.3)
    job.begin()

    async def work() -> None:
        engine = job.start_engine(hold=job.row_ids())
        replica = job.replica(engine)
        task = asyncio.create_task(job.run_shard(replica))
        await until(lambda: len(engine.inside) == 4, "the rows in the engine")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.3 + 4 * TICK_S)

    asyncio.run(work())
    assert job.deaths == 0


# The store fails


def test_a_store_that_refuses_raises_and_nothing_is_lost(job: SmallJob) -> None:
    job.ask(12, question=[None if row == 5 else f"What is {row}?" for row in range(12)])
    job.begin()
    job.put("output/results", b"a file where the folder should be")

    async def work() -> list[Any]:
        replica = job.replica()
        shards = (job.run_shard(replica, shard) for shard in range(job.plan.num_shards))
        return await asyncio.gather(*shards, return_exceptions=True)

    assert {type(outcome) for outcome in asyncio.run(work())} == {StorageError}
    Path(job.output, "results").unlink()
    job.board = LocalBoard()
    job.answer()
    ids = job.row_ids()
    assert job.done() == sorted(set(ids) - {ids[5]})
    assert set(codes(job)) == {ids[5]}
    assert job.finalise() == []
    assert verify(job.ledger).problems == ()


def test_a_shard_whose_prompts_cannot_be_had_leaves_the_replica_to_others(job: SmallJob) -> None:
    job.ask(8)
    job.begin()

    def broken() -> ShardPrompts:
        raise StorageError("the block is gone")

    async def work() -> None:
        replica = job.replica()
        with pytest.raises(StorageError, match="the block is gone"):
            await replica.run(0, broken, may_have_rows=False)
        assert await job.run_shard(replica, 1) == 0

    asyncio.run(work())
    assert job.done() == sorted(job.plan.shard(1).row_ids())


class SlowStore:
    """The S3 server, behind a door that can be shut to uploads of answers: a request waits, or fails though it landed.

    Args:
        endpoint: The server's URL.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = urlsplit(endpoint)
        self.door = threading.Event()
        self.door.set()
        self.knocked = threading.Event()
        self.deny_after_landing = 0  # so many uploads are taken, and answered with 403
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                return

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answers = self.command == "PUT" and "/output/results/" in self.path
                if answers:
                    store.knocked.set()
                    store.door.wait(30)
                connection = http.client.HTTPConnection(str(store.endpoint.hostname), store.endpoint.port, timeout=30)
                connection.request(self.command, self.path, body, dict(self.headers))
                reply = connection.getresponse()
                data = reply.read()
                connection.close()
                if answers and store.deny_after_landing:
                    store.deny_after_landing -= 1
                    self.send_response(403)
                    data = b"<Error><Code>AccessDenied</Code><Message>no more</Message></Error>"
                else:
                    self.send_response(reply.status)
                    for name, value in reply.getheaders():
                        if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                            self.send_header(name, value)
                length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def slow_store(s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    """The test's bucket, reached through the door: clients made from now on go through it."""
    store = SlowStore(s3_endpoint)
    thread = threading.Thread(target=store.server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    s3_client.cache_clear()
    yield store
    store.door.set()
    s3_client.cache_clear()
    store.server.shutdown()
    store.server.server_close()
    thread.join()


def check_that_names_are_believed_rightly(job: SmallJob) -> None:
    """The count of done rows is right: else the shard would count as done with rows open, and never be asked again."""
    assert job.ledger.done_counts(job.plan).tolist() == [len(set(job.done()))]


def test_a_store_that_stands_still_lets_no_more_rows_in(tmp_path: Path, s3: str, slow_store: SlowStore) -> None:
    job = SmallJob(tmp_path, f"{s3}/job")
    job.ask(40)
    job.set("input", shard_rows=40)
    job.set("output", commit_interval_s=NEVER_S, commit_rows=1)
    job.engine["max_num_seqs"] = 1
    job.begin()

    async def work() -> None:
        engine = job.start_engine()
        replica = job.replica(engine)
        slow_store.door.clear()
        shard = asyncio.create_task(job.run_shard(replica))
        await until(lambda: len(engine.order) >= 8, "as many rows as may wait for the store")
        await asyncio.sleep(0.1)  # what would be let in without room is in by now
        asked = len(engine.order)
        assert asked <= 8 + 2  # 8 for each slot are finished, 2 were let in before
        slow_store.door.set()
        assert await shard == 0

    asyncio.run(work())
    assert job.done() == sorted(job.row_ids())


def test_a_stop_in_the_middle_of_a_commit_commits_no_row_twice(tmp_path: Path, s3: str, slow_store: SlowStore) -> None:
    job = SmallJob(tmp_path, f"{s3}/job")
    job.ask(4)
    job.set("input", shard_rows=4)
    job.set("output", commit_interval_s=NEVER_S, commit_rows=2)
    job.begin()
    ids = job.row_ids()

    async def work() -> None:
        engine = job.start_engine(hold=ids[2:])
        replica = job.replica(engine)
        slow_store.door.clear()
        shard = asyncio.create_task(job.run_shard(replica))
        await until(slow_store.knocked.is_set, "the first two rows to be on their way to the store")
        engine.release(ids[2])
        await until(lambda: engine.inside == {ids[3]}, "the third row to be finished")
        replica.stop()
        await asyncio.sleep(0.05)  # a second commit would be at the door by now
        slow_store.door.set()
        assert await shard == 1

    asyncio.run(work())
    assert job.done() == sorted(ids[:3])
    check_that_names_are_believed_rightly(job)


def test_an_upload_that_landed_though_it_failed_counts_no_row_twice(
    tmp_path: Path, s3: str, slow_store: SlowStore
) -> None:
    job = SmallJob(tmp_path, f"{s3}/job")
    job.ask(6)
    job.set("input", shard_rows=6)
    job.set("output", commit_interval_s=NEVER_S, commit_rows=2)
    job.begin()
    ids = job.row_ids()
    slow_store.deny_after_landing = 1

    async def work() -> None:
        engine = job.start_engine(hold=ids[2:])
        replica = job.replica(engine)
        shard = asyncio.create_task(job.run_shard(replica))
        await until(lambda: slow_store.deny_after_landing == 0, "the first upload to be refused")
        engine.release(ids[2])
        await until(lambda: engine.inside == set(ids[3:]), "one more row to be finished")
        replica.stop()  # the last commit holds the three: two of them are in the store already
        (outcome,) = await asyncio.gather(shard, return_exceptions=True)
        assert isinstance(outcome, int | StorageError)

    asyncio.run(work())
    assert set(ids[:2]) <= set(job.done())
    check_that_names_are_believed_rightly(job)
    job.board = LocalBoard()
    job.answer()
    assert job.finalise() == []
    assert job.done() == sorted(ids)
    assert verify(job.ledger).problems == ()
