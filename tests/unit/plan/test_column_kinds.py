"""A column that no row could be asked from is refused by `plan`, with its type and what to do."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.small_job import SmallJob

from magbatch.errors import SpecError
from magbatch.plan.make import make_plan

CHAT = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
PARTS = pa.list_(pa.struct({"role": pa.string(), "content": pa.list_(pa.struct({"text": pa.string()}))}))
FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def planned(tmp_path: Path, kind: pa.DataType, columns: dict[str, Any], **sections: Any) -> None:
    job = SmallJob(tmp_path)
    job.write(pa.table({"x": pa.array([None], kind), "q": ["Why?"]}))
    spec = job.spec(input={"columns": {"id": None, "prompt": None} | columns, "carry": []}, **sections)
    make_plan(spec)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            pa.int64(),
            'is int64, but a prompt is text: name a text column, or insert this one: prompt: {template: "{{ x }}"}',
        ),
        (pa.float64(), "is double, but a prompt is text"),
        (pa.bool_(), "is bool, but a prompt is text"),
        (pa.date32(), "is date32[day], but a prompt is text"),
        (pa.list_(pa.string()), "is list<element: string>, but a prompt is text"),
        (pa.struct({"title": pa.string(), "body": pa.string()}), 'prompt: {template: "{{ x.title }}"}'),
        (CHAT, "a chat, not text: name it in input.columns.messages instead: messages: x"),
        (FILE, "a file, not text: name it in input.columns.images or input.columns.document"),
        (pa.list_(FILE), "a file, not text"),
        (pa.uuid(), "but a prompt is text"),
    ],
    ids=str,
)
def test_a_prompt_that_is_no_text_is_refused(tmp_path: Path, kind: pa.DataType, said: str) -> None:
    with pytest.raises(SpecError, match=r"^input\.columns\.prompt: the column 'x' is ") as caught:
        planned(tmp_path, kind, {"prompt": "x"})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.null(), pa.dictionary(pa.int8(), pa.string())]
)
def test_text_of_any_layout_is_a_prompt(tmp_path: Path, kind: pa.DataType) -> None:
    planned(tmp_path, kind, {"prompt": "x"})


def test_a_template_shows_any_type(tmp_path: Path) -> None:
    planned(tmp_path, pa.int64(), {"prompt": "x"}, prompt={"template": "Is {{ x }} prime?"})


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.int64(), pa.list_(pa.string()), pa.struct({"role": pa.string()}), FILE], ids=str
)
def test_messages_that_are_no_chat_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    with pytest.raises(SpecError, match=r"^input\.columns\.messages: .* a chat is a list of structs with the fields"):
        planned(tmp_path, kind, {"messages": "x"})


@pytest.mark.parametrize("kind", [CHAT, PARTS], ids=str)
def test_chats_are_messages(tmp_path: Path, kind: pa.DataType) -> None:
    planned(tmp_path, kind, {"messages": "x"})


@pytest.mark.parametrize("role", ["images", "document"])
@pytest.mark.parametrize(
    ("kind", "right"),
    [
        (pa.string(), True), (pa.binary(), True), (FILE, True), (pa.list_(FILE), True), (pa.list_(pa.binary()), True),
        (pa.struct({"path": pa.string()}), True), (pa.int64(), False), (pa.bool_(), False), (pa.date32(), False),
        (pa.struct({"url": pa.string()}), False), (pa.list_(pa.list_(pa.string())), False), (CHAT, False),
        (pa.list_(pa.float32()), False),
    ],
    ids=str,
)  # fmt: skip
def test_images_and_documents_have_types_that_can_be_files(
    tmp_path: Path, role: str, kind: pa.DataType, right: bool
) -> None:
    columns = {"prompt": "q", role: ["x"] if role == "images" else "x"}
    if right:
        planned(tmp_path, kind, columns)
        return
    with pytest.raises(SpecError, match=rf"^input\.columns\.{role}: the column 'x' is .* an image or a document is "):
        planned(tmp_path, kind, columns)


def test_all_wrong_columns_are_named_at_once(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.write(pa.table({"x": [1], "scan": [1.5], "q": ["Why?"]}))
    with pytest.raises(SpecError) as caught:
        make_plan(job.spec(input={"columns": {"prompt": "x", "images": ["scan"]}, "carry": []}))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "input.columns.prompt", "input.columns.images",
    ]  # fmt: skip


@pytest.mark.parametrize("column", ["images", "document"])
@pytest.mark.parametrize("in_a_list", [True, False])
def test_a_struct_that_is_no_picture_says_which_fields_it_has(job: SmallJob, column: str, in_a_list: bool) -> None:
    scan = {"data": b"x", "mime": "image/png"}
    job.write(pa.table({"id": ["i"], "question": ["?"], "scan": [[scan] if in_a_list else scan]}))
    job.set("input", columns={"prompt": "question", column: ["scan"] if column == "images" else "scan"})
    with pytest.raises(SpecError, match=rf"^input\.columns\.{column}: .*struct<data: .*, mime: string>.*, but an"):
        job.plan  # noqa: B018
