"""The columns that a job reads, and the spec fields that name them."""

import pytest
from support.small_spec import complaint, spec

from magbatch.errors import SpecError
from magbatch.spec.columns import carried_columns, check_names, input_columns, named_by, rendered_columns

JOB = spec(
    input__columns={
        "id": "doc", "images": ["scan", "photo"], "document": "file", "expected": "truth", "max_tokens": "limit"
    },
    input__carry=["customer", "doc"],
    prompt__template="{{ customer }}: {{ q.title }}",
)  # fmt: skip


def test_each_column_is_read_once() -> None:
    assert rendered_columns(JOB) == ["scan", "photo", "file", "customer", "q"]
    assert carried_columns(JOB.input) == ["doc", "customer", "truth"]
    assert input_columns(JOB) == ["scan", "photo", "file", "customer", "q", "limit", "doc", "truth"]


def test_a_column_is_carried_once() -> None:
    assert "carry names ['a'] twice" in complaint(input__carry=["a", "b", "a"])
    job = spec(input__carry=["customer", "doc"], input__columns={"prompt": "q", "id": "doc"})
    assert carried_columns(job.input) == ["doc", "customer"]


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("doc", "input.columns.id"),
        ("photo", "input.columns.images"),
        ("file", "input.columns.document"),
        ("truth", "input.columns.expected"),
        ("limit", "input.columns.max_tokens"),
        ("customer", "input.carry"),
        ("q", "prompt.template"),
        ("other", "input.group"),
    ],
)
def test_a_column_has_the_field_that_names_it(name: str, field: str) -> None:
    assert named_by(JOB, name) == field
    assert named_by(spec(), "question") == "input.columns.prompt"
    assert named_by(spec(input__columns={"messages": "chat"}), "chat") == "input.columns.messages"


@pytest.mark.parametrize(
    ("columns", "carry", "field"),
    [
        ({"prompt": "q", "id": ""}, [], "input.columns.id"),
        ({"prompt": "q", "images": [""]}, [], "input.columns.images"),
        ({"prompt": "q"}, [""], "input.carry"),
    ],
)
def test_a_column_without_a_name_is_refused(columns: dict[str, object], carry: list[str], field: str) -> None:
    with pytest.raises(SpecError, match=f"^{field}: a column's name is empty"):
        check_names(spec(input__columns=columns, input__carry=carry))
    check_names(JOB)
