"""Answers by a schema, from the engine to the columns that a reader finds, through every command that moves them."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from small_job import SmallJob

from magbatch.job.compact import compact
from magbatch.job.ledger import Ledger
from magbatch.spec import parse

SCHEMA = {
    "type": "object",
    "properties": {"total": {"type": "number"}, "items": {"type": "integer"}, "tags": {"type": "array", "items": {}}},
    "required": ["total", "items"],
}
TYPED = {"total": pa.float64(), "items": pa.int64(), "tags": pa.list_(pa.large_string())}


@pytest.fixture
def typed(job: SmallJob) -> SmallJob:
    """Six rows: most answer as asked, one at the second time, one never, one does not come to an end."""
    job.ask(6)
    job.set("answer", schema=SCHEMA)
    job.set("sampling", max_tokens=60, min_tokens=0)
    job.engine["script"] = [
        {"contains": "a1?", "answer": ["It is 1.", '{"total": 1.5, "items": 1}']},
        {"contains": "a2?", "answer": ["two", '{"total": 2}']},
        {"contains": "a3?", "tokens": 1000},
        {"contains": "What", "answer": '{"total": 9.25, "items": 3, "tags": ["x"]}'},
    ]
    return job


def by_id(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in records}


def test_answers_become_typed_columns(typed: SmallJob) -> None:
    typed.answer()
    assert typed.finalise() == []
    rows = by_id(typed.records())
    assert {row_id: (row["total"], row["items"], row["tags"]) for row_id, row in rows.items()} == {
        "a0": (9.25, 3, ['"x"']), "a1": (1.5, 1, None), "a3": (None, None, None),
        "a4": (9.25, 3, ['"x"']), "a5": (9.25, 3, ['"x"']),
    }  # fmt: skip
    both = sum(len(typed.tokenizer.encode_text(text)) + 1 for text in ("It is 1.", rows["a1"]["answer"]))
    assert rows["a1"]["answer_tokens"] == both, "both answers were paid for"
    assert rows["a0"]["answer"] == '{"total": 9.25, "items": 3, "tags": ["x"]}'
    assert (rows["a3"]["reasoning_status"], rows["a3"]["answer"]) == ("truncated", None)
    for name in typed.objects():
        schema = pq.read_schema(io.BytesIO(typed.ledger.store.read(name)))
        assert {field: schema.field(field).type for field in TYPED} == TYPED
        assert schema.names[schema.names.index("answer") + 1 :][:3] == list(TYPED)
    (letter,) = typed.records("errors")
    assert (letter["id"], letter["step"], letter["error_code"]) == ("a2", "check", "answer_invalid")
    assert letter["message"] == "answer.schema: $: 'items' is a required property"
    assert letter["answer"] == '{"total": 2}'
    assert typed.ledger.verify()[1] == []


def test_an_answer_is_asked_for_twice_at_most(typed: SmallJob) -> None:
    typed.answer()
    ids = dict(zip([f"a{row}" for row in range(6)], typed.row_ids(), strict=True))
    asked = typed.asked()
    # Thinking and answer; one more for what did not fit; only thinking where that never ended.
    assert {name: asked[row_id] for name, row_id in ids.items()} == {
        "a0": 2,
        "a1": 3,
        "a2": 3,
        "a3": 1,
        "a4": 2,
        "a5": 2,
    }


def test_merged_objects_keep_the_types(typed: SmallJob) -> None:
    typed.answer()
    typed.finalise()
    before = sorted(typed.records(), key=lambda row: row["row_id"])
    compact(typed.output, 1 << 28, Console(file=io.StringIO()))
    assert sorted(typed.records(), key=lambda row: row["row_id"]) == before
    assert Ledger(typed.output).verify()[1] == []


def test_an_empty_job_has_the_columns_all_the_same(typed: SmallJob) -> None:
    typed.engine["script"] = [{"contains": "What", "answer": "never JSON"}]
    typed.answer()
    typed.finalise()
    assert len(typed.records("errors")) == 6
    (name,) = typed.objects()
    schema = pq.read_schema(io.BytesIO(typed.ledger.store.read(name)))
    assert {field: schema.field(field).type for field in TYPED} == TYPED


def test_samples_vote_in_a_column(job: SmallJob) -> None:
    job.ask(2)
    job.set("answer", extract=r"(?P<answer>a\d)", vote="majority")
    job.set("sampling", n=3, temperature=0.5)
    job.answer()
    assert [(row["sample"], row["extracted"], row["vote"]) for row in job.records() if row["id"] == "a1"] == [
        (sample, "a1", {"answer": "a1", "share": 1.0}) for sample in range(3)
    ]


def test_another_schema_is_another_job(typed: SmallJob) -> None:
    typed.begin()
    changed = typed.spec(answer={"schema": SCHEMA | {"required": []}})
    with pytest.raises(Exception, match=r"answer\.schema\.required"):
        typed.ledger.check_same(changed)
    assert typed.ledger.check_same(parse(typed.spec().to_yaml()))
