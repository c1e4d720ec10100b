"""An object is whole when it is visible, and its schema is the contract whatever the values."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magbatch.errors import ErrorCode, Step, StorageError
from magbatch.pipeline.write import ObjectWriter, Written
from magbatch.rows import Answer, DeadLetter, FinishedRow, ReasoningStatus
from magbatch.schema import ObjectName, errors_schema, results_schema
from magbatch.storage import Store, open_store
from magbatch.storage.s3 import s3_client

AT = datetime(2026, 11, 23, 18, 0, 0, 123456, UTC)
NOTHING = pa.table({})


def answer(text: str | None = "42", reasoning: str | None = "so", **fields: Any) -> Answer:
    known: dict[str, Any] = {"status": ReasoningStatus.COMPLETE, "finish_reason": "stop"}
    known |= {"reasoning_tokens": 3, "answer_tokens": 2}
    return Answer(reasoning=reasoning, answer=text, **(known | fields))


def finished(row_id: str, *answers: Answer) -> FinishedRow:
    return FinishedRow(row_id, 10, 4, 1.5, list(answers) or [answer()], AT)


def letter(row_id: str, message: str = "gone") -> DeadLetter:
    return DeadLetter(row_id, Step.RENDER, ErrorCode.IMAGE_UNFETCHABLE, message)


def writer(store: Store, carried: pa.Table = NOTHING, positions: dict[str, int] | None = None) -> ObjectWriter:
    return ObjectWriter(store, carried, positions or {}, "the-model", 7)


def read(root: str, part: ObjectName, columns: list[str] | None = None) -> pa.Table:
    """The object as any reader of Parquet sees it."""
    return pq.read_table(io.BytesIO(open_store(root).read(str(part))), columns=columns)


def test_answers_become_records(root: str) -> None:
    part = (
        writer(open_store(root))
        .results(
            [
                finished("a", answer("ünïcode ✓", None, status=ReasoningStatus.ABSENT, reasoning_tokens=0)),
                finished("b", answer(None, "cut", status=ReasoningStatus.TRUNCATED, finish_reason="length")),
            ]
        )
        .name
    )
    common = {
        "sample": 0,
        "prompt_tokens": 10,
        "answer_tokens": 2,
        "cached_tokens": 4,
        "latency_s": 1.5,
        "model": "the-model",
        "attempt": part.attempt,
        "finished_at": AT,
    }
    one = {"row_id": "a", "reasoning": None, "reasoning_status": "absent", "answer": "ünïcode ✓"}
    two = {"row_id": "b", "reasoning": "cut", "reasoning_status": "truncated", "answer": None}
    assert read(root, part).to_pylist() == [
        common | one | {"finish_reason": "stop", "reasoning_tokens": 0},
        common | two | {"finish_reason": "length", "reasoning_tokens": 3},
    ]


def test_dead_letters_become_records(root: str) -> None:
    before = datetime.now(UTC)
    part = writer(open_store(root)).errors([letter("a"), letter("b", "ünïcode ✓")]).name
    records = read(root, part).to_pylist()
    for record in records:
        assert before <= record.pop("finished_at") <= datetime.now(UTC)
    tokens = dict.fromkeys(("prompt_tokens", "reasoning_tokens", "answer_tokens", "cached_tokens"), 0)
    common = {"step": "render", "error_code": "image_unfetchable", "attempt": part.attempt} | tokens
    assert records == [
        common | {"row_id": "a", "message": "gone"},
        common | {"row_id": "b", "message": "ünïcode ✓"},
    ]


def test_the_name_says_what_is_inside_and_the_sequence_goes_on(root: str) -> None:
    store = open_store(root)
    write = writer(store)
    done = [write.results([finished("a"), finished("b")]), write.errors([letter("c")]), write.results([finished("d")])]
    parts = [one.name for one in done]
    assert [(part.kind, part.shard, part.seq, part.rows) for part in parts] == [
        ("results", 7, 0, 2),
        ("errors", 7, 1, 1),
        ("results", 7, 2, 1),
    ]
    assert len({part.attempt for part in parts}) == 1
    assert [item.name for item in store.list("")] == sorted(map(str, parts))


def test_two_attempts_at_a_shard_never_share_a_name(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    parts = {writer(store).results([finished("a")]).name for _ in range(20)}
    assert len(parts) == len({part.attempt for part in parts}) == 20
    assert len(list(store.list("results/"))) == 20


def test_several_samples_of_a_row_are_records_of_one_row(tmp_path: Path) -> None:
    part = (
        writer(open_store(str(tmp_path)))
        .results(
            [finished("a", *(answer(f"a{sample}") for sample in range(3))), finished("b", answer("b0"), answer(None))]
        )
        .name
    )
    assert part.rows == 2
    table = read(str(tmp_path), part)
    assert table.select(["row_id", "sample", "answer"]).to_pylist() == [
        {"row_id": "a", "sample": 0, "answer": "a0"},
        {"row_id": "a", "sample": 1, "answer": "a1"},
        {"row_id": "a", "sample": 2, "answer": "a2"},
        {"row_id": "b", "sample": 0, "answer": "b0"},
        {"row_id": "b", "sample": 1, "answer": None},
    ]


# Carried columns.


CARRIED = {
    "text": pa.array(["ä", None, ""], pa.string()),
    "large": pa.array(["ä", None, ""], pa.large_string()),
    "kind": pa.array(["x", None, "x"]).dictionary_encode(),
    "count": pa.array([1, None, 3], pa.int8()),
    "data": pa.array([b"\xff", None, b""], pa.binary()),
    "at": pa.array([AT, None, AT], pa.timestamp("ns", tz="Europe/Berlin")),
    "price": pa.array([1, None, 3], pa.decimal128(12, 2)),
    "tags": pa.array([["a", None], None, []], pa.list_(pa.string())),
    "deep": pa.array(
        [{"a": 1, "b": [{"c": "x"}]}, None, {"a": None, "b": []}],
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.struct([("c", pa.string())])))]),
    ),
}


@pytest.mark.parametrize("name", CARRIED)
def test_a_carried_column_keeps_its_type_and_its_values(tmp_path: Path, name: str) -> None:
    """Also through rows that finish in another order, have several samples, or could not be read."""
    column = CARRIED[name]
    values = column.to_pylist()
    carried = pa.table({name: column})
    write = writer(open_store(str(tmp_path)), carried, {"a": 0, "b": 1, "c": 2})
    results = write.results([finished("c", answer(), answer()), finished("a"), finished("b")]).name
    table = read(str(tmp_path), results)
    assert table.schema.field(name).type == column.type
    assert table.column(name).to_pylist() == [values[2], values[2], values[0], values[1]]
    errors = read(str(tmp_path), write.errors([letter("b"), letter("never read"), letter("c")]).name)
    assert errors.schema.field(name).type == column.type
    assert errors.column(name).to_pylist() == [values[1], None, values[2]]


def test_carried_columns_of_many_chunks_are_taken_by_position(tmp_path: Path) -> None:
    chunks = [pa.table({"n": [number, number + 1]}) for number in range(0, 100, 2)]
    ids = {f"row-{number}": number for number in range(100)}
    write = writer(open_store(str(tmp_path)), pa.concat_tables(chunks), ids)
    wanted = [97, 0, 55, 2]
    part = write.results([finished(f"row-{number}") for number in wanted]).name
    assert read(str(tmp_path), part).column("n").to_pylist() == wanted


# The contract.


@pytest.mark.parametrize(
    "carried",
    [NOTHING, pa.table(CARRIED), pa.table(CARRIED).slice(0, 0), pa.table({"n": pa.nulls(3, pa.int32())})],
    ids=["nothing", "all kinds", "no row", "nulls"],
)
def test_the_schema_does_not_depend_on_the_values(root: str, carried: pa.Table) -> None:
    ids = {row_id: position for position, row_id in enumerate("abc"[: carried.num_rows])}
    write = writer(open_store(root), carried, ids)
    plain = [finished("a")]
    empty = [finished("a", answer(None, None, status=ReasoningStatus.ABSENT))]
    for rows in (plain, empty, []):
        schema = read(root, write.results(rows).name).schema
        assert same(schema, results_schema(carried.schema))
    for letters in ([letter("a")], [letter("none")], []):
        schema = read(root, write.errors(letters).name).schema
        assert same(schema, errors_schema(carried.schema))


def same(got: pa.Schema, wanted: pa.Schema) -> bool:
    """Names, types, nullability, order and the version."""
    assert [(field.name, field.type, field.nullable) for field in got] == [
        (field.name, field.type, field.nullable) for field in wanted
    ]
    assert (got.metadata or {})[b"magbatch.schema_version"] == b"1"
    return True


def test_nothing_but_reasoning_and_answer_may_be_null_in_the_outputs_own_columns(tmp_path: Path) -> None:
    part = writer(open_store(str(tmp_path))).results([finished("a")]).name
    nullable = [field.name for field in read(str(tmp_path), part).schema if field.nullable]
    assert nullable == ["reasoning", "answer"]


# A store that refuses.


def test_a_store_that_refuses_has_nothing_and_what_comes_next_is_another_attempt(tmp_path: Path) -> None:
    """A refused object may be visible all the same: its name is never used again."""
    place = tmp_path / "out"
    store = open_store(str(place))
    write = writer(store)
    first = write.results([finished("a")]).name
    place.rename(tmp_path / "away")
    place.write_bytes(b"")  # a file where the folder was: the disk refuses
    for refused in (lambda: write.results([finished("b")]), lambda: write.errors([letter("b")])):
        with pytest.raises(StorageError):
            refused()
    place.unlink()
    (tmp_path / "away").rename(place)
    assert [item.name for item in store.list("")] == [str(first)]
    again = write.results([finished("b")]).name
    assert again.attempt != first.attempt
    assert (again.seq, again.rows) == (0, 1)
    assert write.results([finished("c")]).name.seq == 1
    assert len(list(store.list("results/"))) == 3


def test_a_bucket_that_comes_later_takes_what_comes_then(s3: str) -> None:
    write = writer(open_store(f"{s3}-later"))
    with pytest.raises(StorageError):
        write.results([finished("a")])
    s3_client().create_bucket(Bucket=f"{s3.removeprefix('s3://')}-later")
    part = write.results([finished("a")]).name
    assert read(f"{s3}-later", part).column("row_id").to_pylist() == ["a"]


# What no object can hold.


def commit_all(write: ObjectWriter, rows: list[FinishedRow] | list[DeadLetter]) -> list[Written]:
    """Commit as a replica does, until nothing is left."""
    done: list[Written] = []
    while rows:
        done.append(write.commit(rows))
        rows = rows[done[-1].taken :]
    return done


def of(root: str, done: list[Written]) -> list[str]:
    """Row ids of the objects."""
    parts = [one.committed.name for one in done if one.committed is not None]
    return [row_id for part in parts for row_id in read(root, part, ["row_id"]).column("row_id").to_pylist()]


@pytest.mark.parametrize(
    "bad",
    [
        finished("bad", answer("\ud800")),
        finished("bad", answer("fine", "\udfff")),
        finished("bad", answer("fine"), answer(None, "\ud800", status=ReasoningStatus.TRUNCATED)),
        replace(finished("bad"), vote={"answer": "\ud800", "share": 1.0}),
        replace(finished("bad"), vote={"answer": 5, "share": "much"}),
        replace(finished("bad"), prompt_tokens=1 << 40),
        replace(finished("bad"), total_pages=-(1 << 40)),
        finished("bad", answer("fine", values={"due": "tomorrow"})),
    ],
    ids=["answer", "reasoning", "second sample", "vote", "types", "tokens", "pages", "value"],
)
@pytest.mark.parametrize("position", [0, 3, 6])
def test_an_answer_that_cannot_be_written_is_a_dead_letter_and_its_neighbours_are_written(
    tmp_path: Path, bad: FinishedRow, position: int
) -> None:
    vote = pa.struct([("answer", pa.large_string()), ("share", pa.float64())])
    made = pa.schema([("due", pa.date32()), ("vote", vote), ("document_pages", pa.int32())])
    good = [finished(f"good {number}") for number in range(6)]
    write = ObjectWriter(open_store(str(tmp_path)), NOTHING, {}, "the-model", 7, made)
    done = commit_all(write, [*good[:position], bad, *good[position:]])
    assert of(str(tmp_path), done) == [row.row_id for row in good]
    (refused,) = (one for written in done for one in written.refused)
    assert (refused.row_id, refused.step, refused.code) == ("bad", Step.WRITE, ErrorCode.INTERNAL)
    assert refused.message.startswith("results cannot hold the row: ")
    (lost,) = commit_all(write, [refused])
    assert of(str(tmp_path), [lost]) == ["bad"]


def test_rows_none_of_which_can_be_written_leave_no_object(tmp_path: Path) -> None:
    (done,) = commit_all(writer(open_store(str(tmp_path))), [finished(name, answer("\ud800")) for name in "abc"])
    assert (done.taken, done.committed) == (3, None)
    assert [one.row_id for one in done.refused] == ["a", "b", "c"]
    assert list(open_store(str(tmp_path)).list("")) == []


def test_a_dead_letter_loses_the_carried_cells_that_cannot_be_written_and_says_so(tmp_path: Path) -> None:
    """Parquet stores milliseconds instead of seconds, and 2^62 seconds do not fit."""
    carried = pa.table({"n": [1, 2, 3], "at": pa.array([0, 1 << 62, 2], pa.timestamp("s"))})
    write = writer(open_store(str(tmp_path)), carried, {"a": 0, "b": 1, "c": 2})
    (done,) = commit_all(write, [finished("a"), finished("b"), finished("c")])
    assert of(str(tmp_path), [done]) == ["a", "c"]
    (letters,) = commit_all(write, [*done.refused, letter("c")])
    assert letters.committed is not None
    lost, other = read(str(tmp_path), letters.committed.name).to_pylist()
    assert (lost["row_id"], lost["n"], lost["at"]) == ("b", None, None)
    assert "carried columns are left out: ArrowInvalid: " in lost["message"]
    assert (other["n"], other["message"]) == (3, "gone")


def test_text_of_a_dead_letter_that_is_no_text_is_stored_as_far_as_it_is(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write = ObjectWriter(store, NOTHING, {}, "the-model", 7, with_answer=True)
    done = write.commit([replace(letter("a", "of \ud800"), answer="\udc00 it is")])
    assert done.committed is not None
    (record,) = read(str(tmp_path), done.committed.name).to_pylist()
    assert (record["message"], record["answer"]) == ("of ?", "? it is")


# What is too large for one object.


@pytest.mark.parametrize("kind", [pa.string(), pa.list_(pa.binary())])
def test_carried_cells_of_more_bytes_than_an_array_holds_are_written_in_several_objects(
    tmp_path: Path, kind: pa.DataType
) -> None:
    """2.25 GB, of which this process holds one cell: 250 pieces of a column may be the same."""
    text = "x" * 9_000_000
    cell = pa.array([[text.encode()] if pa.types.is_list(kind) else text], kind)
    carried = pa.table({"text": pa.chunked_array([cell] * 250)})
    ids = [f"row-{number}" for number in range(250)]
    write = writer(open_store(str(tmp_path)), carried, {row_id: number for number, row_id in enumerate(ids)})
    done = commit_all(write, [finished(row_id) for row_id in ids])
    assert not any(one.refused for one in done)
    assert {one.taken for one in done} == {7, 5}, "an object holds at most 64 MB"
    assert of(str(tmp_path), done) == ids
    letters = commit_all(write, [letter(row_id) for row_id in ids[:9]])
    assert [one.taken for one in letters] == [7, 2]
    last = letters[-1].committed
    assert last is not None
    table = read(str(tmp_path), last.name)
    assert table.schema.field("text").type == kind
    assert table.column("text").to_pylist() == cell.to_pylist() * 2


def test_generated_text_counts_as_well(tmp_path: Path) -> None:
    rows = [finished(name, answer("x" * 20_000_000, "y" * 5_000_000)) for name in "abcde"]
    done = commit_all(writer(open_store(str(tmp_path))), rows)
    assert [one.taken for one in done] == [2, 2, 1]
    assert of(str(tmp_path), done) == [*"abcde"]


def test_samples_that_repeat_a_large_cell_are_written_together(tmp_path: Path) -> None:
    """A row with 2.4 GB of records: its samples stay together."""
    carried = pa.table({"text": ["x" * 30_000_000, "small"]})
    write = writer(open_store(str(tmp_path)), carried, {"large": 0, "small": 1})
    done = commit_all(write, [finished("large", *([answer()] * 80)), finished("small")])
    assert [(one.taken, one.refused) for one in done] == [(1, []), (1, [])]
    assert of(str(tmp_path), done) == ["large"] * 80 + ["small"]
