"""Grouped rows through a whole job: stored, read, answered and proved, each once."""

import asyncio
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.grouped_rows import FIRST, LONG, ask_about, in_order, shuffled, text
from support.small_job import SmallJob

from magbatch.errors import ErrorCode
from magbatch.ledger.verify import verify
from magbatch.pipeline.block import from_block
from magbatch.pipeline.prepare import prepare
from magbatch.pipeline.read import read_together
from magbatch.plan.make import make_plan, subset_plan
from magbatch.plan.plan import Plan


def test_a_stored_plan_is_the_same_plan(texts: SmallJob) -> None:
    plan = texts.plan
    again = Plan.from_bytes(plan.to_bytes())
    assert again == plan
    assert (again.group, list(again.shards())) == ("text", list(plan.shards()))
    assert again.to_bytes() == make_plan(texts.spec()).to_bytes()  # the same input has the same plan


def test_a_retry_finds_its_rows(texts: SmallJob) -> None:
    plan = texts.plan
    chosen = [row_id for row_id in plan.row_ids() if int(row_id[-2:]) % 3 == 0]
    found = plan.shards_of(chosen)
    assert list(found) == chosen
    assert all(row_id in plan.shard(shard).row_ids() for row_id, shard in found.items())
    assert list(subset_plan(plan, chosen, texts.spec()).row_ids()) == chosen


def test_a_job_that_was_begun_in_the_order_of_its_files_goes_on_in_it(texts: SmallJob) -> None:
    texts.ledger.begin(texts.spec(input={"group": "none"}), make_plan(texts.spec(input={"group": "none"})))
    assert texts.ledger.check_same(texts.spec())
    plan = texts.ledger.plan()
    assert plan is not None
    assert plan.group is None
    assert in_order(plan) == list(range(80))


def test_a_read_task_goes_through_a_window_once(texts: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_about(texts, shuffled(400, 10), row_group_size=100)
    texts.begin()
    shards = [*texts.plan.shards()]
    decoded: list[int] = []

    class Counted(pq.ParquetFile):
        def iter_batches(self, *args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
            for batch in super().iter_batches(*args, **options):
                decoded.append(batch.num_rows)
                yield batch

    monkeypatch.setattr("magbatch.pipeline.cursor.pq.ParquetFile", Counted)
    blocks = prepare(texts.job, texts.steps, shards, frozenset(), lambda: texts.ledger.look_up([]))
    found = {work.shard: [prompt.row_id for prompt in work.prompts] for block in blocks for work in from_block(block)}
    assert found == {shard.index: shard.row_ids() for shard in shards}
    assert sum(decoded) == 400


def test_a_window_that_is_damaged_fails_the_rows_that_are(texts: SmallJob) -> None:
    texts.begin()
    path = Path(texts.input) / "a.parquet"
    whole = path.read_bytes()
    shards = [*texts.plan.shards()]
    path.write_bytes(whole + b" ")  # not the file that was planned
    works = [
        work
        for block in prepare(texts.job, texts.steps, shards, frozenset(), lambda: texts.ledger.look_up([]))
        for work in from_block(block)
    ]
    assert {letter.code for work in works for letter in work.failed} == {ErrorCode.FILE_CHANGED}
    assert sorted(letter.row_id for work in works for letter in work.failed) == sorted(texts.row_ids())


def test_a_grouped_job_answers_every_row_once_also_after_it_was_cut_short(texts: SmallJob) -> None:
    texts.begin()
    cut_short = texts.replica()

    async def some() -> None:
        await asyncio.gather(texts.run_shard(cut_short, 0), texts.run_shard(cut_short, 3))

    asyncio.run(some())
    assert len(texts.done()) == 16
    texts.answer()
    assert texts.done() == sorted(texts.row_ids())
    assert texts.asked() == dict.fromkeys(texts.row_ids(), 1)
    assert texts.finalise() == []
    assert verify(texts.ledger).problems == ()


def test_rows_reach_the_engine_text_by_text(texts: SmallJob) -> None:
    texts.begin()
    engine = texts.start_engine()
    replica = texts.replica(engine)

    async def work() -> None:
        await texts.run_all(replica)

    asyncio.run(work())
    numbers = shuffled(80, 10)
    assert len(list(groupby(numbers[int(row_id[-2:])] for row_id in engine.order))) == 10


FILES = st.lists(
    st.tuples(st.lists(st.integers(0, 6), max_size=30), st.integers(1, 12), st.booleans()), min_size=1, max_size=5
)


@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=FILES, window=st.integers(1, 20), budget=st.integers(1, 40), shard_rows=st.none() | st.integers(1, 9))
def test_whatever_the_files_every_row_is_in_one_shard_and_is_read_as_itself(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[list[int], int, bool]],
    window: int,
    budget: int,
    shard_rows: int | None,
) -> None:
    job = SmallJob(tmp_path_factory.mktemp("job"))
    job.set("prompt", template=FIRST)
    job.set("input", columns={"id": "id"}, group="text", shard_rows=shard_rows, on_bad_file="dead_letter")
    wanted = {}
    for number, (numbers, group_size, bad) in enumerate(files):
        name = f"{number}.parquet"
        if bad and number:
            job.put(f"input/{name}", b"no Parquet")
        else:
            ask_about(job, numbers, name, row_group_size=group_size)
            wanted |= {
                f"{number}/{row}": f"{text(value)}\n\nWhat is {number}{row}?" for row, value in enumerate(numbers)
            }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("magbatch.plan.windows.WINDOW_ROWS", window)
        patch.setattr("magbatch.plan.windows.WINDOW_BYTES", budget * LONG)
        plan = Plan.from_bytes(job.plan.to_bytes())
    readable = sum(len(numbers) for number, (numbers, _, bad) in enumerate(files) if not (bad and number))
    ids = list(plan.row_ids())
    assert len(ids) == len(set(ids)) == plan.rows == readable + len(plan.bad_files())
    assert all(sum(s.rows for s in shard.segments) == shard.rows for shard in plan.shards())
    assert plan.shard_sizes.max(initial=0) <= (shard_rows or max(4, plan.rows // 8))
    names = {segment.key: segment.path for shard in plan.shards() for segment in shard.segments}
    asked = {}
    for together in read_together([*plan.shards()]):
        job.preparer.read_ahead(together)
        for shard in together:
            work = job.preparer(shard)
            assert [prompt.row_id for prompt in work.prompts] == [one for one in shard.row_ids() if "-" in one]
            for prompt in work.prompts:
                key, _, row = prompt.row_id.partition("-")
                shown = job.tokenizer.show(prompt.token_ids)
                asked[f"{Path(names[key]).stem}/{int(row)}"] = shown.removeprefix("<s>[INST]").removesuffix("[/INST]")
    assert asked == wanted
