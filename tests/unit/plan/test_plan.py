"""The plan as a value, and as a stored file."""

import io
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_job import SmallJob

from magbatch.errors import OutputError
from magbatch.pipeline.read import ShardReader
from magbatch.plan.plan import Plan


def test_no_rows_are_no_shards(either_job: SmallJob) -> None:
    either_job.ask(0)
    plan = either_job.plan
    assert (plan.rows, plan.num_shards, list(plan.shards()), len(plan.shard_sizes)) == (0, 0, [], 0)
    again = Plan.from_bytes(plan.to_bytes())
    assert (again.rows, again.num_shards, again.columns) == (0, 0, plan.columns)


def test_one_row_is_one_shard(either_job: SmallJob) -> None:
    either_job.ask(1)
    (shard,) = either_job.plan.shards()
    assert shard.rows == 1
    assert shard.row_ids() == ["cb8eb0d4cd41-000000000"]  # this id is in users' outputs: it may never change


CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def test_a_stored_plan_is_the_same_plan(job: SmallJob) -> None:
    chat = [{"role": "user", "content": "héllo"}]
    job.write(pa.table({"talk": pa.array([chat] * 7, CHAT), "naïve": ["ü"] * 7}), "größe/日本.parquet")
    job.write(pa.table({"talk": pa.array([chat] * 2, CHAT), "naïve": pa.nulls(2)}), "z.parquet")
    job.put("input/bad.parquet", b"no Parquet")
    job.set("input", columns={"messages": "talk", "id": "naïve"}, on_bad_file="dead_letter", shard_rows=4)
    plan = job.plan
    again = Plan.from_bytes(plan.to_bytes())
    assert again.columns.equals(plan.columns, check_metadata=True)
    assert list(again.shards()) == list(plan.shards())
    assert again.rows == plan.rows == 10
    assert again.bad_files() == plan.bad_files()
    assert again.to_bytes() == plan.to_bytes()


def without(plan: Plan, key: bytes) -> bytes:
    """A stored plan that lacks an entry, as plans of older versions do."""
    table = pq.read_table(io.BytesIO(plan.to_bytes()))
    return as_parquet(table.replace_schema_metadata({k: v for k, v in table.schema.metadata.items() if k != key}))


def test_a_plan_of_the_version_before_is_read(job: SmallJob) -> None:
    job.ask(3)
    old = Plan.from_bytes(stored(job.plan, drop="digest"))
    assert [segment.digest for shard in old.shards() for segment in shard.segments] == [None]
    assert list(old.row_ids()) == list(job.plan.row_ids())
    read = ShardReader(old.columns)(old.shard(0))
    assert (len(read.row_ids), read.failed) == (3, [])


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def stored(plan: Plan, drop: str | None = None, **metadata: str) -> bytes:
    table = pq.read_table(io.BytesIO(plan.to_bytes()))
    kept = {key.decode(): value.decode() for key, value in table.schema.metadata.items()} | metadata
    return as_parquet((table.drop([drop]) if drop else table).replace_schema_metadata(kept))


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan: b"",
        lambda plan: b"no Parquet",
        lambda plan: plan.to_bytes()[:-20],
        lambda plan: as_parquet(plan.table),
        lambda plan: stored(plan, **{"magbatch.columns": "no base64!"}),
        lambda plan: stored(plan, **{"magbatch.columns": "AAAA"}),
        lambda plan: stored(plan, drop="start"),
    ],
    ids=["empty", "no parquet", "cut off", "another table", "no base64", "no schema", "lacks a column"],
)
def test_a_damaged_plan_is_an_error_of_the_output(job: SmallJob, damage: Any) -> None:
    job.ask(3)
    assert list(Plan.from_bytes(stored(job.plan)).shards()) == list(job.plan.shards())
    with pytest.raises(OutputError, match=r"_magbatch/plan\.parquet is damaged"):
        Plan.from_bytes(damage(job.plan))


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [("rows", -1, "below 0"), ("rows", None, "1 nulls"), ("shard", None, "1 nulls"), ("path", None, "1 nulls"),
     ("start", -5, "below 0"), ("code", "no_such_code", "'no_such_code', which is not an error code")],
)  # fmt: skip
def test_a_plan_that_nobody_can_count_with_is_damaged(job: SmallJob, column: str, value: Any, named: str) -> None:
    job.ask(3)
    table = job.plan.table
    at, kind = table.schema.get_field_index(column), table.schema.field(column)
    plan = replace(job.plan, table=table.set_column(at, kind, pa.array([value] * table.num_rows, kind.type)))
    with pytest.raises(OutputError, match=f"plan.parquet is damaged: .*{named}"):
        Plan.from_bytes(plan.to_bytes())
