"""Columns of a job's objects."""

import pytest
from support.small_job import SmallJob

from magbatch.ledger.contract import grading_of, narrow_columns, schema_of
from magbatch.schema import ERRORS, RESULTS


@pytest.fixture
def graded(job: SmallJob) -> SmallJob:
    """A job with right answers, one carried column, and a column of the output's names."""
    job.ask(2, right=["1", "2"], answer=["x", "y"])
    job.set("input", columns={"id": "id", "prompt": "question", "expected": "right"}, carry=["answer"])
    return job


def test_carried_columns_have_their_names_in_the_output(graded: SmallJob) -> None:
    for kind in (RESULTS, ERRORS):
        names = schema_of(graded.spec(), graded.plan, kind).names
        assert {"row_id", "id", "right", "input_answer"} <= set(names)
        assert len(names) == len(set(names))


def test_a_proof_reads_the_carried_columns_and_the_answer_that_is_graded(graded: SmallJob) -> None:
    narrow = narrow_columns(graded.spec(), graded.plan)
    assert set(narrow[ERRORS]) == {"id", "right", "input_answer"}
    assert set(narrow[RESULTS]) - set(narrow[ERRORS]) == {"answer"}


def test_a_job_without_right_answers_is_not_graded(job: SmallJob) -> None:
    job.ask(1)
    assert grading_of(job.spec(), job.plan) is None
    assert narrow_columns(job.spec(), job.plan) == {RESULTS: ["id"], ERRORS: ["id"]}
