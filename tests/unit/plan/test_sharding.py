"""Shards: their number of rows, the rows of a sample, and the memory that a shard takes."""

from itertools import pairwise

import pyarrow as pa
import pytest
from support.small_job import SmallJob

from magbatch.plan.make import make_plan
from magbatch.plan.plan import Plan


def all_ids(plan: Plan) -> list[str]:
    return [row_id for shard in plan.shards() for row_id in shard.row_ids()]


def test_many_small_files_share_shards(either_job: SmallJob) -> None:
    for number in range(20):
        either_job.ask(3, f"{number:02d}.parquet")
    either_job.ask(0, "empty.parquet")
    either_job.set("input", shard_rows=16)
    plan = either_job.plan
    assert plan.shard_sizes.tolist() == [16, 16, 16, 12]
    assert [shard.rows for shard in plan.shards()] == [16, 16, 16, 12]
    assert len(set(all_ids(plan))) == 60
    assert len(plan.shard(0).segments) == 6
    assert plan.num_files() == 20


def test_one_big_file_is_cut_into_consecutive_shards(job: SmallJob) -> None:
    job.ask(1000)
    job.set("input", shard_rows=300)
    starts = [(segment.start, segment.rows) for shard in job.plan.shards() for segment in shard.segments]
    assert starts == [(0, 300), (300, 300), (600, 300), (900, 100)]
    assert all_ids(job.plan) == [f"cb8eb0d4cd41-{row:09d}" for row in range(1000)]


@pytest.mark.parametrize(
    ("rows", "replicas", "images", "size"),
    [
        (40, 1, False, 4),  # small jobs get many shards, but not of one row each
        (64 * 32, 1, False, 64),
        (64 * 32, 4, False, 16),
        (20_000, 1, False, 256),  # what Ray costs a shard no longer counts
        (20_000, 1, True, 32),  # a block of decoded pages has to fit into Ray's object store
        (40, 1, True, 4),
    ],
)
def test_shard_size_follows_the_size_of_the_job(
    job: SmallJob, rows: int, replicas: int, images: bool, size: int
) -> None:
    job.write(pa.table({"question": pa.repeat("?", rows), "scan": pa.nulls(rows, pa.binary())}))
    job.set("input", columns={"prompt": "question", "images": ["scan"] if images else []})
    job.set("replicas", max=replicas)
    sizes = job.plan.shard_sizes
    assert sizes[:-1].tolist() == [size] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= size
    assert sizes.sum() == rows


def test_shards_of_large_rows_have_fewer_of_them(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes in footers of the columns that the job reads bound a shard, because a shard is one block in memory."""
    monkeypatch.setattr("magbatch.plan.sharding.SHARD_BYTES", 256 << 10)
    job.ask(2048, "a.parquet", note=["small"] * 2048)
    letters = "".join(chr(33 + code) for code in range(90))
    notes = [f"{row} {letters}" * 60 for row in range(60)]  # 5.6 kB each, none twice
    job.ask(60, "b.parquet", note=notes)
    job.set("replicas", min=1, max=1)
    before = job.plan.shard_sizes.tolist()
    assert max(before) == 2108 // 32, "a column that is not read counts for nothing"
    plan = make_plan(job.spec(input={"carry": ["note"]}))
    assert all_ids(plan) == all_ids(job.plan)
    sizes = {True: [0], False: [0]}
    for shard in plan.shards():
        large = sum(segment.rows for segment in shard.segments if segment.path.endswith("b.parquet"))
        sizes[large > 0].append(large or shard.rows)
    assert max(sizes[False]) == max(before), "shards of small rows stay as they are"
    assert 5.6 * max(sizes[True]) <= 268 < 5.6 * (max(sizes[True]) + 20)
    assert sum(sizes[True]) == 60
    own = make_plan(job.spec(input={"carry": ["note"], "shard_rows": 100}))
    assert max(own.shard_sizes.tolist()) == 100, "what the spec says stands"


@pytest.mark.parametrize("limit", [1, 2, 7, 50, 99, 100])
def test_a_limit_takes_exactly_that_many_rows_evenly_spread(job: SmallJob, limit: int) -> None:
    for number, rows in enumerate([1, 0, 60, 5, 34]):
        job.ask(rows, f"{number}.parquet")
    everything = {row_id: index for index, row_id in enumerate(all_ids(job.plan))}
    plan = make_plan(job.spec(), limit)
    chosen = [everything[row_id] for row_id in all_ids(plan)]
    assert plan.rows == len(chosen) == len(set(chosen)) == limit
    gaps = {after - before for before, after in pairwise([*chosen, 100])}  # the last one stands for what follows it
    assert chosen[0] == 0
    assert max(gaps) - min(gaps) <= 1, chosen
    assert all_ids(make_plan(job.spec(), limit)) == all_ids(plan)


def test_a_limit_above_the_input_takes_all_of_it(job: SmallJob) -> None:
    job.ask(5)
    assert all_ids(make_plan(job.spec(), 6)) == all_ids(job.plan)


def test_a_limit_over_no_rows_is_no_rows(job: SmallJob) -> None:
    job.ask(0)
    assert make_plan(job.spec(), 6).rows == 0


def test_a_limit_leaves_bad_files_out(job: SmallJob) -> None:
    job.ask(4)
    job.put("input/b.parquet", b"no Parquet")
    plan = make_plan(job.spec(input={"on_bad_file": "dead_letter"}), 3)
    assert plan.rows == 3
    assert plan.bad_files() == []
