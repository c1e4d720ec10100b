"""Answers held against the right ones, where the input knows them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_job import SmallJob

from magbatch.errors import SpecError
from magbatch.rows import RESULTS
from magbatch.spec import carried_columns
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
    ("answers", "expected", "graded", "right"),
    [
        (["19.22", "5"], pa.array(["19.22", "6"]), 2, 1),
        (["19.22", "5"], pa.array(["19.22", None]), 1, 1),  # nobody knows the second: it is not counted
        ([None, "5"], pa.array(["", "5"]), 2, 2),
        ([None, "5"], pa.array(["x", None]), 1, 0),
        ([" 562\n", "7"], pa.array(["562", " 7"], pa.large_string()), 2, 2),
        (["562", "-7"], pa.array([562, -8], pa.int64()), 2, 1),
        (["0.5", "2"], pa.array([0.5, None], pa.float64()), 1, 1),
        (["true", "2"], pa.array([True, False]), 2, 1),
        (["Yes", "yes"], pa.array(["Yes", "Yes"]), 2, 1),
        (["a", "b"], pa.array(["a", "c"]).dictionary_encode(), 2, 1),
        (["a", "b"], pa.array([None, None], pa.string()), 0, 0),
        ([], pa.array([], pa.string()), 0, 0),
    ],
)
def test_an_answer_is_right_when_it_is_the_expected_text(
    answers: list[str | None], expected: pa.Array, graded: int, right: int
) -> None:
    totals = Totals()
    totals.add(RESULTS, results(answers, expected), "truth")
    assert (totals.graded, totals.right, totals.answered) == (graded, right, len(answers))


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
    totals, missing = graded.ledger.finalise(
        graded.spec(), graded.plan, lambda kind, table: None, lambda totals: None, lambda: None
    )
    assert missing == []
    assert (totals.graded, totals.right) == (12, 6)
    assert {row["id"]: row["truth"] for row in graded.records(RESULTS)} == dict(zip(answers, truth, strict=True))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([["a"], ["b"]]), r"list<"),
        (pa.array([{"a": 1}, {"a": 2}]), r"struct<"),
        (pa.array([b"a", b"b"]), "binary"),
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
