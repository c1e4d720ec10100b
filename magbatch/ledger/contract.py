"""Columns of a job's objects, and rules for counting them, derived from the spec and the plan."""

import pyarrow as pa

from magbatch.answers import made_columns
from magbatch.answers.grading import Grading
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESULTS, errors_schema, results_schema
from magbatch.spec import JobSpec
from magbatch.storage.columns import carried_fields


def grading_of(spec: JobSpec, plan: Plan) -> Grading | None:
    """The rule that compares answers with right answers; None if the input has no right answers."""
    return Grading.of(spec, plan.output_name(spec.input.columns.expected))


def narrow_columns(spec: JobSpec, plan: Plan) -> dict[str, list[str]]:
    """Names of the columns that totals and summaries of this job need, by kind, in addition to those of every job."""
    carry, grading = carried_fields(spec, plan.columns).names, grading_of(spec, plan)
    return {RESULTS: [*carry, grading.given] if grading is not None else carry, ERRORS: carry}


def schema_of(spec: JobSpec, plan: Plan, kind: str) -> pa.Schema:
    """The schema of a job's objects of a kind."""
    carry = carried_fields(spec, plan.columns)
    if kind == ERRORS:
        return errors_schema(carry, with_answer=spec.answer.may_refuse)
    return results_schema(carry, made_columns(spec))
