"""A row may have fewer tokens than its job allows: `input.columns.max_tokens`."""

import pyarrow as pa
import pytest
from support.small_job import SmallJob

from magbatch.errors import SpecError

COLUMNS = {"id": "id", "prompt": "question", "max_tokens": "limit"}


def limited(job: SmallJob, limits: pa.Array) -> SmallJob:
    job.ask(len(limits), limit=limits)
    job.set("input", columns=COLUMNS)
    return job


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16(), pa.int64(), pa.uint64()])
def test_each_row_has_its_own_limit(job: SmallJob, kind: pa.DataType) -> None:
    limited(job, pa.array([3, None, 120, 1], kind)).set("sampling", max_tokens=20)
    job.answer()
    found = {row["id"]: row["reasoning_tokens"] + row["answer_tokens"] for row in job.records()}
    assert found == {"a0": 3, "a1": 20, "a2": 20, "a3": 1}
    assert {row["finish_reason"] for row in job.records()} == {"length"}


def test_a_limit_beyond_any_counter_is_none(job: SmallJob) -> None:
    limited(job, pa.array([2**64 - 1], pa.uint64())).set("sampling", max_tokens=5)
    job.answer()
    (row,) = job.records()
    assert row["reasoning_tokens"] + row["answer_tokens"] == 5


def test_a_row_without_tokens_is_a_dead_letter(job: SmallJob) -> None:
    limited(job, pa.array([0, 9, -4]))
    job.answer()
    letters = {row["id"]: (row["error_code"], row["message"]) for row in job.records("errors")}
    assert set(letters) == {"a0", "a2"}
    assert letters["a2"] == ("missing_value", "column 'limit' is -4 in this row; it must be 1 or more")
    assert [row["id"] for row in job.records()] == ["a1"]


@pytest.mark.parametrize("column", [pa.array([1.5]), pa.array(["8"]), pa.array([True])])
def test_a_limit_is_a_whole_number(job: SmallJob, column: pa.Array) -> None:
    limited(job, column)
    with pytest.raises(SpecError, match=r"input\.columns\.max_tokens: the column 'limit' is \w+; tokens are whole"):
        _ = job.plan


def test_thinking_and_answer_share_a_rows_limit(job: SmallJob) -> None:
    limited(job, pa.array([30, 8, 2, 1, None])).set("sampling", max_tokens=40)
    job.set("reasoning", budget_tokens=6)
    job.answer()
    rows = {row["id"]: row for row in job.records()}
    assert {one: row["reasoning_tokens"] for one, row in rows.items()} == {"a0": 6, "a1": 6, "a2": 1, "a4": 6}
    # The closing token counts against the limit, but was not generated.
    assert [rows[one]["answer_tokens"] for one in ("a1", "a2")] == [2, 1]
    assert max(row["reasoning_tokens"] + row["answer_tokens"] for row in rows.values()) <= 40
    (letter,) = job.records("errors")
    assert (letter["id"], letter["error_code"]) == ("a3", "missing_value")
    assert letter["message"] == "max_tokens of this row is 1: reasoning and answer need at least 2 tokens"
