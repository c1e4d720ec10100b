"""Wrong input and prompt sections are named, with what would be right."""

from typing import Any

import pytest
from support.small_spec import complaint, complaint_about, spec

from magbatch.spec import parse


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("input.columns.imagez", ["scan"], "did you mean `images`?"),
        ("input.on_bad_file", "skip", "write fail or dead_letter (it is 'skip')"),
        ("input.carry", "doc_id", "write a list, such as [doc_id] (it is 'doc_id')"),
        ("input.shard_rows", 0, "write a whole number of 1 or more (it is 0)"),
        ("input.path", "", "is empty: write a local path or s3://bucket/prefix"),
        ("input.path", "gs://docs/", "only local paths and s3:// are known (it is 'gs://docs/')"),
        ("prompt.template", "", "is empty; write text, or leave it out"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_write(field: str, value: Any, right: str) -> None:
    assert right in complaint_about(field, value)


def test_an_incremental_input_needs_a_schedule() -> None:
    assert "input.incremental is for jobs that run again and again: set schedule.cron too" in complaint(
        input__incremental=True
    )
    job = spec(input__incremental=True, schedule={"cron": "0 6 * * *", "timezone": "Europe/Paris"})
    assert job.schedule is not None
    assert job.schedule.missed == "catch_up"
    assert parse(job.to_yaml()) == job
