"""Carried columns keep their names in the output, or get another one if the output has it already."""

import io
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.book import carry_out
from support.small_job import SmallJob

from magbatch.errors import SpecError
from magbatch.jobs.choice import Choice
from magbatch.jobs.compact import merge_objects
from magbatch.jobs.preview import preview
from magbatch.jobs.retry import Retry, merge, prepare
from magbatch.jobs.run import run
from magbatch.ledger.layout import REPORT
from magbatch.ledger.verify import verify
from magbatch.pipeline.prepare import Preparer, Steps
from magbatch.plan.output_names import output_names
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESERVED_COLUMNS, RESULTS

QUIET = Console(file=io.StringIO())
SCHEMA = {"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}


def names(job: SmallJob, **sections: object) -> dict[str, str]:
    return output_names(job.spec(**sections))


# Names in the output


@pytest.mark.parametrize("name", sorted(RESERVED_COLUMNS))
def test_a_carried_column_by_a_name_of_the_output_gets_a_prefix(job: SmallJob, name: str) -> None:
    assert names(job, input={"carry": ["fine", name]}) == {"id": "id", "fine": "fine", name: f"input_{name}"}
    assert names(job, input={"columns": {"prompt": "q", "id": name}}) == {name: f"input_{name}"}


def test_columns_of_the_answer_count_where_the_job_makes_them(job: SmallJob) -> None:
    carry = {"carry": ["extracted", "vote", "total"]}
    plain = dict.fromkeys(["id"]) | {name: name for name in carry["carry"]}
    assert names(job, input=carry) == plain | {"id": "id"}
    assert names(job, input=carry, answer={"extract": "whole"})["extracted"] == "input_extracted"
    voted = names(job, input=carry, answer={"vote": "majority", "extract": "boxed"}, sampling={"n": 3})
    assert voted == {"id": "id", "extracted": "input_extracted", "vote": "input_vote", "total": "total"}
    assert names(job, input=carry, answer={"schema": SCHEMA})["total"] == "input_total"


def test_upper_and_lower_case_are_the_same_name(job: SmallJob) -> None:
    assert names(job, input={"carry": ["Answer", "ID", "Id"]}) == {
        "id": "id",
        "Answer": "input_Answer",
        "ID": "input_ID",
        "Id": "input_input_Id",
    }


def test_a_column_that_can_keep_its_name_does(job: SmallJob) -> None:
    """The input may be the output of a job that carried a column `answer` itself."""
    assert names(job, input={"carry": ["answer", "input_answer"]}) == {
        "id": "id",
        "answer": "input_input_answer",
        "input_answer": "input_answer",
    }


def test_a_column_without_a_name_is_refused(job: SmallJob) -> None:
    job.ask(1)
    job.set("input", carry=[""])
    with pytest.raises(SpecError, match=r"^input\.carry: a column's name is empty"):
        job.plan  # noqa: B018
    job.set("input", carry=[], columns={"prompt": "question", "id": ""})
    with pytest.raises(SpecError, match=r"^input\.columns\.id: a column's name is empty"):
        preview(job.spec())


def test_plan_says_which_columns_have_another_name(job: SmallJob) -> None:
    job.ask(2, answer=["1", "2"], Model=["x", "y"])
    job.set("input", columns={"id": "id", "prompt": "question", "expected": "answer"}, carry=["Model"])
    assert preview(job.spec()).notes[-1] == (
        "carried columns whose names the output has already: 'Model' is written as 'input_Model', "
        "'answer' is written as 'input_answer'"
    )


@pytest.mark.parametrize("name", ["a.b", "a", " ", "with blank", "new\nline", "\x1b[31m", "a/b", "é", "carry.id", "'"])
def test_odd_names_are_carried(job: SmallJob, name: str) -> None:
    job.write(pa.table({"id": ["1"], "a": ["other"], "a.b": [{"b": 3}], "question": ["?"]} | {name: ["kept"]}))
    job.set("input", columns={"id": name, "prompt": "question"}, carry=["id"])
    job.answer()
    (row,) = job.records()
    assert (row[name], row["id"], list(row)[2:4]) == ("kept", "1", [name, "id"])
    assert job.finalise() == []
    assert verify(job.ledger).problems == ()


# Their way through everything that reads carried columns


def hold_up(job: SmallJob) -> None:
    """Six rows by ids that come twice, with columns that the output has too; two of them are too long to be asked."""
    ids = ["a", "b", "b", "c", "d", "d"]
    job.write(
        pa.table(
            {
                "row_id": ids,
                "question": ["What?", "What?", "What?", "What?" * 200, "What?" * 200, "What?"],
                "answer": ["yes", None, "no", "yes", "no", "yes"],
                "message": [f"m{row}" for row in range(6)],
                "Model": [1.5 * row for row in range(6)],
                "prompt_tokens": [[row] for row in range(6)],
                "sample": list(range(6)),
            }
        )
    )
    columns = {"id": "row_id", "prompt": "question", "expected": "answer"}
    job.set("input", columns=columns, carry=["message", "Model", "prompt_tokens", "sample"])
    job.set("limits", max_prompt_tokens=100)


CARRIED = ["input_row_id", "input_message", "input_Model", "input_prompt_tokens", "input_sample", "input_answer"]


def test_columns_that_the_output_has_too_go_all_the_way(job: SmallJob) -> None:
    hold_up(job)
    job.answer()
    report = run(job.spec(), QUIET).report
    assert (report.duplicate_ids, report.totals.graded, report.totals.right) == (2, 3, 0)
    assert {row["id"] for row in report.slowest} == {"a", "b", "d"}
    for kind, before, rows in ((RESULTS, 2, [0, 1, 2, 5]), (ERRORS, 1, [3, 4])):
        name = job.objects(kind)[0]
        schema = pq.read_schema(io.BytesIO(job.ledger.store.read(name)))
        assert schema.names[before : before + len(CARRIED)] == CARRIED
        assert len({one.lower() for one in schema.names}) == len(schema.names)
        found = sorted(job.records(kind), key=lambda row: row["input_sample"])
        assert [row["input_sample"] for row in found] == rows
        assert [row["input_message"] for row in found] == [f"m{row}" for row in rows]
        assert [row["input_Model"] for row in found] == [1.5 * row for row in rows]
        assert [row["input_prompt_tokens"] for row in found] == [[row] for row in rows]
        assert [row["input_row_id"] for row in found] == [["a", "b", "b", "c", "d", "d"][row] for row in rows]
    assert verify(job.ledger).problems == ()
    before = {kind: sorted(job.records(kind), key=lambda row: row["row_id"]) for kind in (RESULTS, ERRORS)}
    merge_objects(job.ledger, 1 << 28, lambda: None)
    assert {kind: sorted(job.records(kind), key=lambda row: row["row_id"]) for kind in before} == before
    assert verify(job.ledger).problems == ()

    again = prepare(job.ledger, Choice(), ["limits.max_prompt_tokens=2000"])
    assert isinstance(again, Retry)
    job.plan, job.output = again.plan, again.spec.output.path
    job.set("output", path=job.output)
    job.set("limits", max_prompt_tokens=2000)
    job.preparer = Preparer(job.job, Steps.of(job.spec(), job.steps.checkpoint))
    job.answer()
    assert carry_out(job.ledger, job.spec(), job.plan) == []
    merge(again, lambda: None)
    ledger = again.ledger
    found = pa.concat_tables(
        pq.read_table(io.BytesIO(ledger.store.read(str(name)))) for name in ledger.objects(RESULTS)
    )
    assert sorted(found.column("input_message").to_pylist()) == [f"m{row}" for row in range(6)]
    assert verify(ledger).problems == ()
    assert json.loads(ledger.store.read(REPORT))["duplicate_ids"] == 2


def test_a_plan_of_the_version_before_keeps_the_names_that_it_had(job: SmallJob) -> None:
    """Version 0.1.0 wrote `Model` next to `model`."""
    job.ask(3, Model=["x", "y", "z"])
    job.set("input", carry=["Model"])
    plan = Plan.from_bytes(job.plan.to_bytes())
    assert plan.output_name("Model") == "input_Model"
    bare = pa.schema([one.remove_metadata() for one in plan.columns])
    job.plan = replace(plan, columns=bare)
    job.answer()
    assert job.finalise() == []
    assert [row["Model"] for row in job.records()] == ["x", "y", "z"]
    assert verify(job.ledger).problems == ()
