"""Answers by a schema, from the engine to the columns that a reader finds, through every command that moves them."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.small_job import SmallJob

from magbatch.jobs.compact import compact
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.verify import verify
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
    assert verify(typed.ledger).problems == ()


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
    assert verify(Ledger(typed.output)).problems == ()


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


def test_an_answer_that_takes_for_ever_is_its_rows_dead_letter_and_the_others_go_on(job: SmallJob) -> None:
    job.ask(6)
    job.set("answer", extract=r"(?P<answer>(x+x+)+y|7)")
    job.set("limits", answer_timeout_s=2.0, row_timeout_s=3.0)
    job.engine["script"] = [
        {"contains": "a2?", "answer": "x" * 40},
        {"contains": "What", "answer": "The answer: 7."},
    ]
    job.answer()
    assert job.finalise() == []
    assert {row["id"]: row["extracted"] for row in job.records()} == {f"a{row}": "7" for row in range(6) if row != 2}
    (letter,) = job.records("errors")
    assert (letter["id"], letter["step"], letter["error_code"]) == ("a2", "check", "answer_invalid")
    assert letter["message"] == "answer.extract: not checked within limits.answer_timeout_s = 2"
    assert letter["answer"] == "x" * 40
    assert verify(job.ledger).problems == ()


@pytest.mark.parametrize(
    "answer",
    ['{"total": 1, "items": 1, "items": 1}', '{"total": NaN, "items": 1}', "[" * 1000, '{"total": "\\ud800"}', "x" * 9],
)
def test_whatever_an_answer_holds_it_is_asked_for_again_and_then_a_dead_letter(job: SmallJob, answer: str) -> None:
    job.ask(2)
    job.set("answer", schema=SCHEMA, vote="majority")
    job.set("sampling", n=2, temperature=0.5, max_tokens=8000)
    job.engine["max_model_len"] = 20_000
    fine = '{"total": 1, "items": 2, "more": "\\ud83d\\ude00"}'
    job.engine["script"] = [{"contains": "a1?", "answer": [answer, fine]}, {"contains": "What", "answer": answer}]
    job.answer()
    (letter,) = job.records("errors")
    assert (letter["id"], letter["error_code"], letter["answer"]) == ("a0", "answer_invalid", answer)
    assert [(row["id"], row["total"], row["vote"]["share"]) for row in job.records()] == [("a1", 1.0, 1.0)] * 2


def test_dead_letters_have_the_tokens_that_they_took(typed: SmallJob) -> None:
    typed.engine["script"][:0] = [
        {"contains": "a4?", "do": "reject"},
        {"contains": "a5?", "tokens": 20, "answer": ["no", "no"]},
    ]
    typed.answer()
    assert typed.finalise() == []
    letters = by_id(typed.records("errors"))
    tokens = {name: (row["reasoning_tokens"], row["answer_tokens"]) for name, row in letters.items()}

    def length(*texts: str) -> int:
        return sum(len(typed.tokenizer.encode_text(text)) + 1 for text in texts)  # and what ends them

    assert tokens == {"a2": (17, length("two", '{"total": 2}')), "a4": (0, 0), "a5": (21, 2 * length("no"))}
    assert letters["a2"]["prompt_tokens"] > 5
    manifest = typed.ledger.manifest()
    assert manifest is not None
    rows = typed.records()
    for name in ("prompt_tokens", "reasoning_tokens", "answer_tokens", "cached_tokens"):
        assert getattr(manifest.totals, name) == sum(row[name] for row in [*rows, *letters.values()])
    assert (manifest.totals.records, manifest.totals.failed_generated) == (3, 2)
    assert sum(manifest.totals.by_answer.values()) == 5
    assert verify(typed.ledger).problems == ()


def test_dead_letters_of_an_older_version_are_as_good_as_others(typed: SmallJob) -> None:
    typed.answer()
    (name,) = typed.objects("errors")
    new = pq.read_table(io.BytesIO(typed.ledger.store.read(name)))
    older = new.drop_columns(["prompt_tokens", "reasoning_tokens", "answer_tokens", "cached_tokens", "answer"])
    sink = io.BytesIO()
    pq.write_table(older, sink)
    typed.ledger.store.write(name, sink.getvalue())
    assert typed.finalise() == []
    assert verify(typed.ledger).problems == ()
    manifest = typed.ledger.manifest()
    assert manifest is not None
    assert manifest.totals.reasoning_tokens == sum(row["reasoning_tokens"] for row in typed.records())
    compact(typed.output, 1 << 28, Console(file=io.StringIO()))
    (letter,) = typed.records("errors")
    assert (letter["id"], letter["error_code"], letter["answer_tokens"], letter["answer"]) == (
        "a2", "answer_invalid", None, None
    )  # fmt: skip
    assert verify(typed.ledger).problems == ()


def test_what_a_row_generated_before_it_hung_counts(job: SmallJob) -> None:
    job.ask(12)
    job.set("limits", row_timeout_s=1.0)
    job.engine |= {"max_num_seqs": 2, "token_s": 0.004, "script": [{"contains": "a3?", "do": "hang"}]}
    job.answer()
    (letter,) = job.records("errors")
    assert (letter["error_code"], letter["reasoning_tokens"], letter["answer_tokens"]) == ("row_timeout", 1, 0)
    assert letter["prompt_tokens"] > 5
