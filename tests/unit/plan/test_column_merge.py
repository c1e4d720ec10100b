"""Columns of several files: each is found in some file, and has one type in all of them."""

from typing import Any

import pyarrow as pa
import pytest
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, SpecError
from magbatch.plan.make import make_plan
from magbatch.spec.columns import input_columns


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"input": {"columns": {"prompt": "nope"}}}, "input.columns.prompt"),
        ({"input": {"columns": {"messages": "nope"}}}, "input.columns.messages"),
        ({"input": {"columns": {"prompt": "question", "images": ["nope"]}}}, "input.columns.images"),
        ({"input": {"columns": {"prompt": "question", "id": "nope"}}}, "input.columns.id"),
        ({"input": {"columns": {"prompt": "question", "expected": "nope"}}}, "input.columns.expected"),
        ({"input": {"columns": {"prompt": "question", "max_tokens": "nope"}}}, "input.columns.max_tokens"),
        ({"input": {"carry": ["nope"]}}, "input.carry"),
        ({"prompt": {"template": "{{ question }} {{ nope }}"}}, "prompt.template"),
    ],
)
@pytest.mark.parametrize("on_bad_file", ["fail", "dead_letter"])
def test_a_column_of_no_file_is_the_specs_mistake(
    job: SmallJob, sections: dict[str, Any], field: str, on_bad_file: str
) -> None:
    job.ask(1)
    job.ask(1, "b.parquet")
    job.set("input", on_bad_file=on_bad_file)
    with pytest.raises(SpecError) as refused:
        make_plan(job.spec(**sections))
    assert str(refused.value) == f"{field}: no input file has a column 'nope'; they have ['id', 'question']"


def test_each_column_is_read_once(job: SmallJob) -> None:
    job.set("input", columns={"id": "id", "prompt": "question", "images": ["scan"]}, carry=["question", "id", "kind"])
    job.set("prompt", template="{{ question }} {{ place }} {% for word in words %}{{ word }}{% endfor %}")
    assert sorted(input_columns(job.spec())) == ["id", "kind", "place", "question", "scan", "words"]


TEXT = pa.string()


CHAT = pa.list_(pa.struct([("role", TEXT), ("content", TEXT)]))


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ([TEXT, TEXT], TEXT),
        ([TEXT, pa.large_string()], pa.large_string()),
        ([pa.large_string(), TEXT], pa.large_string()),
        ([pa.dictionary(pa.int8(), TEXT)], TEXT),
        ([pa.large_string(), pa.dictionary(pa.int8(), TEXT)], pa.large_string()),
        ([pa.null()], TEXT),
        ([pa.null(), pa.null()], TEXT),
        ([pa.null(), pa.int64()], pa.int64()),
        ([pa.int32(), pa.null(), pa.int64()], pa.int64()),
        ([pa.null(), pa.null(), pa.dictionary(pa.int8(), TEXT), pa.null()], TEXT),
        ([pa.int64(), pa.int32()], pa.int64()),
        ([pa.float32(), pa.float64()], pa.float64()),
        ([pa.binary(), pa.large_binary()], pa.large_binary()),
        ([CHAT], CHAT),
        ([pa.null(), CHAT], CHAT),
        ([CHAT, pa.list_(pa.struct([("role", TEXT), ("content", pa.null())]))], CHAT),
        ([CHAT, pa.list_(pa.struct([("content", TEXT), ("role", TEXT)]))], CHAT),
    ],
)
def test_the_types_of_a_column_are_brought_together(
    job: SmallJob, kinds: list[pa.DataType], common: pa.DataType
) -> None:
    for number, kind in enumerate(kinds):
        job.write(pa.table({"question": ["?"], "more": pa.nulls(1).cast(kind)}), f"{number}.parquet")
    job.set("input", columns={"prompt": "question"}, carry=["more"])
    assert job.plan.columns == pa.schema([("question", TEXT), ("more", common)])
    assert job.plan.rows == len(kinds)


def test_a_file_that_is_refused_leaves_no_trace_in_the_types(job: SmallJob) -> None:
    nulls = pa.nulls(1)
    kinds = [
        {"x": nulls, "y": [[1]], "question": ["?"]},
        {"x": [1], "y": ["text"], "question": ["?"]},  # refused for y: its x says nothing
        {"x": ["text"], "y": [[2]], "question": ["?"]},
    ]
    for name, columns in zip("abc", kinds, strict=True):
        job.write(pa.table(columns), f"{name}.parquet")
    job.set("input", columns={"prompt": "question"}, carry=["x", "y"], on_bad_file="dead_letter")
    assert [path for path, _ in job.plan.bad_files()] == [f"{job.input}/b.parquet"]
    assert job.plan.columns.field("x").type == TEXT


def test_one_odd_file_does_not_turn_the_others_away(job: SmallJob) -> None:
    job.write(pa.table({"id": ["x"], "question": [1]}), "a.parquet")
    job.ask(2, "b.parquet")
    job.ask(2, "c.parquet")
    job.set("input", on_bad_file="dead_letter")
    ((path, problem),) = job.plan.bad_files()
    assert path == f"{job.input}/a.parquet"
    assert problem == f"{path}: the column 'question' is int64 here, but string in other files"
    assert job.plan.rows == 5


@pytest.mark.parametrize("first", [TEXT, pa.string_view()])
def test_text_is_text_in_whatever_layout_a_writer_kept_it(job: SmallJob, first: pa.DataType) -> None:
    for name, kind in (("a", first), ("b", pa.string_view()), ("c", TEXT)):
        job.write(
            pa.table({"id": pa.array(["i"], kind), "question": pa.array([f"What is {name}?"], kind)}), f"{name}.parquet"
        )
    assert job.plan.columns == pa.schema([("question", TEXT), ("id", TEXT)])
    assert len(job.prompts(0).prompts) == 3


def test_bytes_are_text_where_a_prompt_shows_them(job: SmallJob) -> None:
    order = pa.array([{"no": b"4711"}, {"no": b"\xff"}], pa.struct([("no", pa.binary())]))
    job.write(pa.table({"name": pa.array(["Café".encode()] * 2, pa.binary()), "order": order, "scan": [b"\xff"] * 2}))
    job.set("input", columns={"prompt": None, "id": "name"}, carry=["scan"])
    job.set("prompt", template="{{ name }}: {{ order.no }}")
    assert job.plan.columns.field("scan").type == pa.binary()
    work = job.prompts(0)
    (prompt,), (letter,) = work.prompts, work.failed
    assert "[INST]Café: 4711[/INST]" in job.tokenizer.show(prompt.token_ids)
    assert letter.code is ErrorCode.ROW_UNREADABLE
    assert "column 'order'" in letter.message
