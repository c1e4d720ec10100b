"""Answers held against the right ones, where the input knows them."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.book import rewrite_manifest
from support.small_job import SmallJob

from magbatch.errors import SpecError
from magbatch.ledger.finalise import finalise
from magbatch.ledger.layout import REPORT
from magbatch.ledger.verify import verify
from magbatch.schema import RESULTS
from magbatch.spec.columns import carried_columns
from magbatch.totals import Totals


def results(answers: list[str | None], expected: pa.Array) -> pa.Table:
    """The columns of an object that totals need."""
    rows = len(answers)
    return pa.table(
        {
            "sample": pa.array([0] * rows, pa.int32()),
            **{name: pa.array([1] * rows, pa.int32()) for name in ("prompt_tokens", "cached_tokens")},
            **{name: pa.array([1] * rows, pa.int32()) for name in ("reasoning_tokens", "answer_tokens")},
            "reasoning_status": ["complete"] * rows,
            "latency_s": [0.5] * rows,
            "answer": pa.array(answers, pa.large_string()),
            "truth": expected,
        }
    )


@pytest.mark.parametrize(
    "truth",
    [
        pa.array([10**7, 5], pa.int32()).view(pa.date32()),
        pa.array([2**60, 5]).view(pa.timestamp("us")),
        pa.array([2**50, 5]).view(pa.timestamp("s", tz="UTC")),
        pa.array([2**60, 5]).view(pa.timestamp("us", tz="Nowhere/Land")),
        pa.array(['{"x": 0e99999999999999999999}', '{"x": 5}']),
    ],
    ids=lambda truth: str(truth.type),
)
def test_a_job_ends_and_verifies_whatever_is_expected(job: SmallJob, truth: pa.Array) -> None:
    job.ask(2, truth=truth)
    job.set("input", columns={"id": "id", "prompt": "question", "expected": "truth"})
    job.set("answer", schema={"type": "object", "properties": {"x": {}, "y": {}}})
    job.engine["script"] = [{"contains": "What", "answer": '{"x": 5}'}]
    job.answer()
    assert job.finalise() == []
    assert verify(job.ledger).problems == ()
    manifest = job.ledger.manifest()
    assert manifest is not None
    right = 1 if pa.types.is_string(truth.type) else 0
    assert [getattr(manifest.totals, name) for name in ("answered", "failed", "graded", "right")] == [2, 0, 2, right]


BOTH = {"total": {"type": "number"}, "day": {"type": "string", "format": "date"}}


@pytest.mark.parametrize(
    ("answer", "said", "truth", "right"),
    [
        ({"extract": "boxed"}, r"It is \\boxed{5}.", pa.array([5, 6], pa.int64()), 1),
        ({"extract": "boxed"}, r"It is \\boxed{5}.", pa.array(["5", "It is 5."]), 1),
        ({"extract": "boxed"}, "It is 5.", pa.array(["", "5"]), 0),
        ({"schema": {"total": {"type": "number"}}}, '{"total": 19.90}', pa.array([19.9, 19.91]), 1),
        ({"schema": {"x": {"type": "string", "format": "date"}}}, '{"x": "2026-03-01"}',
         pa.array([date(2026, 3, 1), date(2026, 3, 2)]), 1),
        ({"schema": BOTH}, '{"total": 19.90, "day": "2026-03-01"}',
         pa.array(['{"day":"2026-03-01","total":19.9}', '{"total": 19.9}']), 1),
        ({"extract": "boxed", "vote": "majority"}, r"\\boxed{5}", pa.array([5.0, 6.0]), 1),
        ({"schema": {"total": {"type": "number"}}, "vote": "majority"}, '{"total": 19.90}', pa.array([19.9, 20]), 1),
        ({}, "Ü", pa.array(["Ü".encode(), b"U"]), 1),  # text that its file does not call text
        ({"vote": "majority"}, "Five", pa.array(["Five", "five"]), 1),
    ],
)  # fmt: skip
def test_what_the_job_makes_of_an_answer_is_held_against_the_right_one(
    job: SmallJob, answer: dict[str, Any], said: str, truth: pa.Array, right: int
) -> None:
    if "schema" in answer:
        answer = answer | {"schema": {"type": "object", "properties": answer["schema"]}}
    job.ask(2, truth=truth)
    job.set("answer", **answer)
    job.set("input", columns={"id": "id", "prompt": "question", "expected": "truth"})
    if "vote" in answer:
        job.set("sampling", n=2, temperature=0.5)
    job.engine["script"] = [{"contains": "What", "answer": said.replace(r"\\", "\\")}]
    job.answer()
    assert job.finalise() == []
    manifest = job.ledger.manifest()
    assert manifest is not None
    assert (manifest.totals.graded, manifest.totals.right) == (2, right)
    assert verify(job.ledger).problems == ()


def test_a_manifest_whose_right_answers_an_older_version_counted_is_not_held_against_this_one(job: SmallJob) -> None:
    job.ask(2, truth=pa.array([19.9, 5]))
    job.set("input", columns={"id": "id", "prompt": "question", "expected": "truth"})
    job.engine["script"] = [{"contains": "What", "answer": "19.90"}]
    job.answer()
    job.finalise()
    manifest = job.ledger.manifest()
    assert manifest is not None
    assert (manifest.totals.right, verify(job.ledger).problems) == (1, ())
    rewrite_manifest(job.ledger, totals=replace(manifest.totals, right=0))
    assert list(verify(job.ledger).problems) == ["_magbatch/manifest.json says right 0, the objects give 1"]
    job.ledger.store.write(REPORT, json.dumps({"retries_counted": 0}).encode())
    rewrite_manifest(job.ledger, version=1, files=(), graded_by=None)
    assert verify(job.ledger).problems == ()


def test_nothing_is_graded_where_nothing_is_expected() -> None:
    totals = Totals()
    totals.add(RESULTS, results(["5"], pa.array(["5"])))
    assert (totals.graded, totals.right) == (0, 0)


def test_every_sample_of_a_job_is_graded(tmp_path: Path) -> None:
    asked = SmallJob(tmp_path / "asked")
    asked.ask(6)
    asked.set("sampling", n=2)
    asked.answer()
    answers = {row["id"]: row["answer"] for row in asked.records(RESULTS)}
    truth = [answers[f"a{row}"] if row % 2 else f"not {answers[f'a{row}']}" for row in range(6)]

    graded = SmallJob(tmp_path / "graded")
    graded.ask(6, truth=truth)
    graded.set("sampling", n=2)
    graded.set("input", columns={"id": "id", "prompt": "question", "expected": "truth"})
    graded.answer()
    totals, missing = finalise(
        graded.ledger, graded.spec(), graded.plan, lambda kind, table: None, lambda totals: {}, lambda: None
    )
    assert missing == []
    assert (totals.graded, totals.right) == (12, 6)
    assert {row["id"]: row["truth"] for row in graded.records(RESULTS)} == dict(zip(answers, truth, strict=True))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([["a"], ["b"]]), r"list<"),
        (pa.array([{"a": 1}, {"a": 2}]), r"struct<"),
    ],
)
def test_what_has_no_text_cannot_be_expected(job: SmallJob, column: pa.Array, kind: str) -> None:
    job.write(pa.table({"question": ["?", "?"], "truth": column}))
    job.set("input", columns={"prompt": "question", "expected": "truth"})
    with pytest.raises(SpecError, match=rf"input\.columns\.expected: the column 'truth' is {kind}"):
        job.plan  # noqa: B018


def test_expected_answers_are_carried_once(job: SmallJob) -> None:
    def carried(**fields: Any) -> list[str]:
        return carried_columns(job.spec(input=fields).input)

    columns = {"id": "id", "prompt": "question", "expected": "truth"}
    assert carried(columns=columns) == ["id", "truth"]
    assert carried(columns=columns, carry=["more"]) == ["id", "more", "truth"]
    assert carried(columns=columns, carry=["truth", "more"]) == ["id", "truth", "more"]
