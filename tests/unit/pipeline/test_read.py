"""Every row of a shard comes out once: readable in the planned types, or with the reason why not."""

import io
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.awsrequest import AWSResponse

from magbatch.errors import ErrorCode, StorageError
from magbatch.pipeline import cursor as cursor_module
from magbatch.pipeline.read import ShardReader, ShardRows, read_together
from magbatch.rows import Segment, Shard
from magbatch.storage import open_store
from magbatch.storage.columns import plain, settled
from magbatch.storage.input_file import InputFile, open_input
from magbatch.storage.inputs import stat_input
from magbatch.storage.s3 import s3_client

TEXT = pa.schema([("q", pa.string())])


def put(root: str, name: str, table: pa.Table, **options: Any) -> str:
    """A Parquet file below a root, local or s3://; returns its path."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    open_store(root).write(name, sink.getvalue().to_pybytes())
    return f"{root}/{name}"


def questions(rows: int, first: int = 0) -> pa.Table:
    return pa.table({"q": [f"question {number}" for number in range(first, first + rows)], "n": list(range(rows))})


def segment(path: str, start: int, rows: int, key: str = "") -> Segment:
    now = stat_input(path)
    return Segment(path, key or path.rpartition("/")[2].removesuffix(".parquet"), now.size, now.tag, start, rows)


def shard(*segments: Segment) -> Shard:
    return Shard(0, segments)


def texts(read: ShardRows) -> dict[str, Any]:
    """Row id to question."""
    assert len(read.row_ids) == read.table.num_rows == len(read.folders)
    return dict(zip(read.row_ids, read.table.column("q").to_pylist(), strict=True))


def test_rows_come_with_their_ids_folders_and_the_planned_columns_only(root: str) -> None:
    path = put(root, "deep/a.parquet", questions(10))
    read = ShardReader(TEXT)(shard(segment(path, 3, 2)))
    assert texts(read) == {"a-000000003": "question 3", "a-000000004": "question 4"}
    assert read.folders == [f"{root}/deep"] * 2
    assert read.table.schema == TEXT
    assert read.failed == []


def test_many_small_files_make_one_shard(root: str) -> None:
    paths = [put(root, f"f{number:02d}.parquet", questions(2, first=10 * number)) for number in range(20)]
    read = ShardReader(TEXT)(shard(*(segment(path, 0, 2) for path in paths)))
    assert texts(read) == {
        f"f{number:02d}-{row:09d}": f"question {10 * number + row}" for number in range(20) for row in range(2)
    }


def test_one_file_with_many_row_groups_is_cut_anywhere(root: str) -> None:
    path = put(root, "a.parquet", questions(100), row_group_size=7)
    reader = ShardReader(TEXT)
    for start in range(0, 100, 13):
        rows = min(13, 100 - start)
        read = reader(shard(segment(path, start, rows)))
        assert texts(read) == {f"a-{row:09d}": f"question {row}" for row in range(start, start + rows)}


def test_any_order_of_segments_gives_the_right_rows(tmp_path: Path) -> None:
    """The same reader serves all cuts that a plan, a sample or a retry may make of two files."""
    rng = random.Random(7)
    files = {
        "a": (put(str(tmp_path), "a.parquet", questions(300), row_group_size=90), 300),
        "b": (put(str(tmp_path), "b.parquet", questions(150, first=1000), row_group_size=1000), 150),
    }
    reader = ShardReader(TEXT)
    for _ in range(60):
        segments, wanted = [], {}
        for _ in range(rng.randrange(1, 5)):
            key = rng.choice("ab")
            path, rows = files[key]
            start = rng.randrange(rows)
            length = rng.randrange(1, min(rows - start, 80) + 1)
            segments.append(segment(path, start, length, key=f"{key}{len(segments)}"))
            base = 1000 if key == "b" else 0
            wanted |= {
                f"{segments[-1].key}-{row:09d}": f"question {base + row}" for row in range(start, start + length)
            }
        assert texts(reader(shard(*segments))) == wanted


def test_sampled_rows_are_segments_of_one_row(tmp_path: Path) -> None:
    path = put(str(tmp_path), "a.parquet", questions(1000), row_group_size=64)
    wanted = list(range(0, 1000, 37))
    read = ShardReader(TEXT)(shard(*(segment(path, row, 1) for row in wanted)))
    assert texts(read) == {f"a-{row:09d}": f"question {row}" for row in wanted}


def test_rows_that_are_done_are_left_out(tmp_path: Path) -> None:
    first, second = (put(str(tmp_path), f"{name}.parquet", questions(4)) for name in "ab")
    work = shard(segment(first, 0, 4), segment(second, 0, 4))
    read = ShardReader(TEXT)(work, frozenset({"a-000000001", *segment(second, 0, 4).row_ids()}))
    assert list(texts(read)) == ["a-000000000", "a-000000002", "a-000000003"]
    nothing = ShardReader(TEXT)(work, frozenset(work.row_ids()))
    assert texts(nothing) == {}
    assert nothing.table.schema == TEXT


def test_a_file_all_of_whose_rows_are_done_is_not_opened(tmp_path: Path) -> None:
    path = put(str(tmp_path), "a.parquet", questions(2))
    work = shard(segment(path, 0, 2))
    Path(path).unlink()
    read = ShardReader(TEXT)(work, frozenset(work.row_ids()))
    assert (read.row_ids, read.failed) == ([], [])


VALUES = ["plain", "ünïcode ✓ 数字 🙂", "", None, "[/THINK]", "line\nbreak", "plain"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(VALUES, pa.string()),
        pa.array(VALUES, pa.large_string()),
        pa.array(VALUES, pa.string()).dictionary_encode(),
        pa.array(VALUES, pa.large_string()).dictionary_encode(),
        pa.array(VALUES, pa.string_view()),
        pa.array([None if value is None else value.encode() for value in VALUES], pa.binary()),
    ],
    ids=lambda column: str(column.type),
)
def test_text_comes_out_as_planned_however_it_was_written(tmp_path: Path, column: pa.Array) -> None:
    path = put(str(tmp_path), "a.parquet", pa.table({"q": column}))
    read = ShardReader(TEXT)(shard(segment(path, 0, len(VALUES))))
    assert read.table.schema == TEXT
    assert read.table.column("q").to_pylist() == VALUES


def test_files_of_different_but_compatible_types_make_one_table(tmp_path: Path) -> None:
    root = str(tmp_path)
    tables = [
        pa.table({"q": pa.array(["a"], pa.large_string()), "n": pa.array([1], pa.int8())}),
        pa.table({"n": pa.array([2], pa.int64()), "q": pa.array(["b"]).dictionary_encode()}),
        pa.table({"q": pa.nulls(1), "n": pa.nulls(1)}),
        pa.table({"q": pa.array(["d"]), "n": pa.array([None], pa.int32()), "more": [1]}),
    ]
    paths = [put(root, f"{number}.parquet", table) for number, table in enumerate(tables)]
    planned = pa.schema([("q", pa.string()), ("n", pa.int64())])
    read = ShardReader(planned)(shard(*(segment(path, 0, 1) for path in paths)))
    assert read.table.schema == planned
    assert read.table.to_pydict() == {"q": ["a", "b", None, "d"], "n": [1, 2, None, None]}


def test_nested_and_binary_values_come_out_whole(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    chat = [[{"role": "user", "content": "hï"}, {"role": "assistant", "content": None}], None, []]
    table = pa.table({"chat": pa.array(chat, kind), "image": [b"\xff\x00", None, b""]})
    path = put(str(tmp_path), "a.parquet", table)
    read = ShardReader(table.schema)(shard(segment(path, 0, 3)))
    assert read.table.to_pydict() == {"chat": chat, "image": [b"\xff\x00", None, b""]}


def test_a_job_that_reads_no_column_still_has_its_rows(tmp_path: Path) -> None:
    path = put(str(tmp_path), "a.parquet", questions(5))
    read = ShardReader(pa.schema([]))(shard(segment(path, 1, 3)))
    assert read.row_ids == [f"a-{row:09d}" for row in (1, 2, 3)]
    assert read.failed == []


# What a row or a file can have against being read.


def codes(read: ShardRows) -> dict[str, ErrorCode]:
    return {row_id: error.code for row_id, error in read.failed}


def test_a_file_that_was_bad_when_planned_is_one_failure_with_its_problem() -> None:
    bad = Segment("/in/b.parquet", "b", 1, "t", 0, 1, "b.parquet: lacks 'q'", ErrorCode.FILE_SCHEMA)
    read = ShardReader(TEXT)(shard(bad))
    ((row_id, error),) = read.failed
    assert (row_id, error.code, error.message) == ("b", ErrorCode.FILE_SCHEMA, "b.parquet: lacks 'q'")
    assert read.table.num_rows == 0


def test_a_file_that_changed_since_the_plan_fails_its_rows_and_no_others(root: str) -> None:
    changed, fine = (put(root, f"{name}.parquet", questions(2)) for name in "ab")
    work = shard(segment(changed, 0, 2), segment(fine, 0, 2))
    put(root, "a.parquet", questions(3))
    read = ShardReader(TEXT)(work)
    assert codes(read) == dict.fromkeys(["a-000000000", "a-000000001"], ErrorCode.FILE_CHANGED)
    assert list(texts(read)) == ["b-000000000", "b-000000001"]


def test_a_file_of_the_same_size_that_changed_is_noticed(root: str) -> None:
    path = put(root, "a.parquet", pa.table({"q": ["one"]}))
    work = shard(segment(path, 0, 1))
    put(root, "a.parquet", pa.table({"q": ["two"]}))
    assert stat_input(path).size == work.segments[0].size
    assert codes(ShardReader(TEXT)(work)) == {"a-000000000": ErrorCode.FILE_CHANGED}


def test_a_file_that_is_gone_fails_its_rows_and_no_others(root: str) -> None:
    gone, fine = (put(root, f"{name}.parquet", questions(2)) for name in "ab")
    work = shard(segment(gone, 0, 2), segment(fine, 0, 2))
    open_store(root).delete("a.parquet")
    read = ShardReader(TEXT)(work, frozenset({"a-000000000"}))
    assert codes(read) == {"a-000000001": ErrorCode.FILE_UNREADABLE}
    assert list(texts(read)) == ["b-000000000", "b-000000001"]


def harm(path: Path, group: int, part: float, column: int = 0) -> None:
    """Overwrite 16 bytes of a column chunk's pages, as a bad disk does: size and time of the file stay."""
    chunk = pq.ParquetFile(path).metadata.row_group(group).column(column)
    data = bytearray(path.read_bytes())
    begin = chunk.data_page_offset + int(part * (chunk.total_compressed_size - 16))
    data[begin : begin + 16] = bytes(byte ^ 0xFF for byte in data[begin : begin + 16])
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


LONG = 400  # characters a question: a page of 1 KiB holds few rows


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, list[str]]:
    """Three row groups of 40 rows in small pages; the middle group is damaged in its middle."""
    rng = random.Random(3)
    wanted = ["".join(rng.choices("abcdefgh", k=LONG)) for _ in range(120)]
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"q": wanted}),
        path,
        row_group_size=40,
        compression="zstd",
        use_dictionary=False,
        data_page_size=1024,
        write_batch_size=4,
    )
    harm(path, group=1, part=0.5)
    with pytest.raises((OSError, pa.ArrowException)):
        pq.read_table(path)
    return path, wanted


def test_damage_takes_the_rows_from_it_to_the_end_of_the_segment_and_no_others(damaged: tuple[Path, list[str]]) -> None:
    path, wanted = damaged
    read = ShardReader(TEXT)(shard(segment(str(path), 0, 40), segment(str(path), 40, 40), segment(str(path), 80, 40)))
    got = texts(read)
    failed = codes(read)
    assert set(failed.values()) == {ErrorCode.ROW_UNREADABLE}
    assert got.keys() | failed.keys() == {f"a-{row:09d}" for row in range(120)}
    assert not got.keys() & failed.keys()
    assert all(text == wanted[int(row_id[-9:])] for row_id, text in got.items())
    lost = sorted(int(row_id[-9:]) for row_id in failed)
    assert lost == list(range(lost[0], 80))
    assert 40 < lost[0] < 75  # rows before the damage are read
    message = read.failed[0][1].message
    assert message.startswith(f"{path}: damaged at row {lost[0]}: ")
    assert "\n" not in message


def test_a_reader_goes_on_after_damage(damaged: tuple[Path, list[str]]) -> None:
    path, wanted = damaged
    reader = ShardReader(TEXT)
    lost = len(reader(shard(segment(str(path), 40, 40))).failed)
    assert lost > 0
    for start in (80, 0, 85):
        assert list(texts(reader(shard(segment(str(path), start, 5)))).values()) == wanted[start : start + 5]
    again = reader(shard(segment(str(path), 40, 40)))
    assert len(again.failed) == lost


def test_single_rows_of_a_damaged_file_are_read_where_they_can_be(damaged: tuple[Path, list[str]]) -> None:
    path, wanted = damaged
    rows = [0, 39, 40, 79, 80, 119]
    read = ShardReader(TEXT)(shard(*(segment(str(path), row, 1) for row in rows)))
    assert list(codes(read)) == ["a-000000079"]
    assert list(texts(read).values()) == [wanted[row] for row in rows if row != 79]


def test_done_rows_of_a_damaged_file_stay_done(damaged: tuple[Path, list[str]]) -> None:
    path, _ = damaged
    part = segment(str(path), 40, 40)
    read = ShardReader(TEXT)(shard(part), frozenset({"a-000000040", "a-000000079"}))
    assert "a-000000040" not in texts(read)
    assert "a-000000079" not in codes(read)
    assert "a-000000078" in codes(read)


def mixed(path: str, rows: int, shards: int, seed: int = 5) -> list[Shard]:
    """Shards whose rows stand between each other's, in no order."""
    order = list(range(rows))
    random.Random(seed).shuffle(order)
    return [Shard(index, tuple(segment(path, row, 1) for row in order[index::shards])) for index in range(shards)]


@pytest.mark.parametrize("shards", [1, 4])
def test_damage_fails_the_same_rows_where_shards_are_read_ahead(
    damaged: tuple[Path, list[str]], shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = damaged
    work = mixed(str(path), 120, shards)
    ahead, alone = ShardReader(TEXT), ShardReader(TEXT)
    with monkeypatch.context() as patch:
        opened: list[str] = []
        real = cursor_module.open_input

        def look(name: str, *planned: Any) -> InputFile:
            opened.append(name)
            return real(name, *planned)

        patch.setattr(cursor_module, "open_input", look)
        ahead.read_ahead(work)
        found = [ahead(one) for one in work]
        assert len(opened) == 3  # at once, row by row, and behind the damage
    for one, read in zip(work, found, strict=True):
        expected = alone(one)
        assert read.row_ids == expected.row_ids
        assert read.table == expected.table
        assert codes(read) == codes(expected)
    assert sum(len(read.failed) for read in found) > 4


def test_shards_that_are_read_ahead_hold_what_the_file_holds(root: str) -> None:
    paths = [
        put(root, f"{name}.parquet", questions(90, first=100 * at), row_group_size=40) for at, name in enumerate("ab")
    ]
    rng = random.Random(2)
    places = [segment(path, row, 1) for path in paths for row in range(90)]
    rng.shuffle(places)
    work = [Shard(index, tuple(places[index::6])) for index in range(6)]
    assert list(read_together(work)) == [work]
    reader = ShardReader(TEXT)
    reader.read_ahead(work)
    found = {row_id: text for one in work for row_id, text in texts(reader(one)).items()}
    assert found == {
        f"{name}-{row:09d}": f"question {100 * at + row}" for at, name in enumerate("ab") for row in range(90)
    }


def test_shards_in_the_order_of_their_file_are_read_one_by_one(tmp_path: Path) -> None:
    path = put(str(tmp_path), "a.parquet", questions(40))
    in_order = [Shard(index, (segment(path, 10 * index, 10),)) for index in range(4)]
    assert list(read_together(in_order)) == [[one] for one in in_order]
    assert list(read_together([])) == []
    windows = [*mixed(path, 20, 2), *(Shard(9, (segment(path, row, 1),)) for row in (21, 20))]
    assert [len(together) for together in read_together(windows)] == [2, 2]


@pytest.mark.parametrize(("spoil", "code"), [("gone", ErrorCode.FILE_UNREADABLE), ("changed", ErrorCode.FILE_CHANGED)])
def test_a_file_that_is_another_when_it_is_read_ahead_fails_its_rows(
    root: str, spoil: str, code: ErrorCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = (put(root, f"{name}.parquet", questions(20), row_group_size=5) for name in "ab")
    work = [
        Shard(index, tuple(segment(one, row, 1) for row in (7 + index, index) for one in (path, other)))
        for index in (0, 1)
    ]
    if spoil == "gone":
        open_store(root).delete("a.parquet")
    else:
        put(root, "a.parquet", questions(21))
    reader = ShardReader(TEXT)
    reader.read_ahead(work)
    monkeypatch.delattr(cursor_module, "open_input")  # nobody asks again, row by row
    for one in work:
        read = reader(one)
        assert set(codes(read).values()) == {code}
        assert [row_id[0] for row_id in read.row_ids] == ["b", "b"]


def replaced(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes in a file, whose size and time stay."""
    data = path.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    before = path.stat()
    path.write_bytes(data.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


PLAIN: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}


def test_damage_that_decodes_is_noticed_where_the_file_has_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"q": ["pay 100 now", "second"]}), path, write_page_checksum=True, **PLAIN)
    replaced(path, b"pay 100 now", b"pay 900 now")
    assert pq.read_table(path).column("q")[0].as_py() == "pay 900 now"  # it decodes all the same
    read = ShardReader(TEXT)(shard(segment(str(path), 0, 2)))
    assert codes(read) == dict.fromkeys(["a-000000000", "a-000000001"], ErrorCode.ROW_UNREADABLE)


def test_text_that_is_not_utf_8_fails_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"q": ["before", "XX marks it", "after"]}), path, **PLAIN)
    replaced(path, b"XX marks", b"\xff\xfe marks")
    read = ShardReader(TEXT)(shard(segment(str(path), 0, 3)))
    assert texts(read) == {"a-000000000": "before", "a-000000002": "after"}
    assert codes(read) == {"a-000000001": ErrorCode.ROW_UNREADABLE}
    assert read.failed[0][1].message.startswith(f"{path}: damaged at row 1: ")


def test_a_value_that_the_planned_type_cannot_hold_fails_its_row_alone(tmp_path: Path) -> None:
    """Whole numbers in one file and, for a null, floats in another: pandas writes such files."""
    table = pa.table({"q": ["a", "b", "c"], "n": pa.array([1, 2**60 + 1, 3], pa.int64())})
    path = put(str(tmp_path), "a.parquet", table)
    planned = pa.schema([("q", pa.string()), ("n", pa.float64())])
    read = ShardReader(planned)(shard(segment(path, 0, 3)))
    assert list(texts(read)) == ["a-000000000", "a-000000002"]
    assert codes(read) == {"a-000000001": ErrorCode.ROW_UNREADABLE}


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("seed", range(6))
def test_no_damage_loses_a_row_or_stops_the_others(tmp_path: Path, compression: str, seed: int) -> None:
    """Whatever the damage does, every row comes out once, and the other file's rows come out right."""
    rng = random.Random(seed)
    table = pa.table({"q": [f"{number} " + "x" * rng.randrange(50) for number in range(60)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=20, compression=compression, data_page_size=256, write_batch_size=4)
    harm(path, group=rng.randrange(3), part=rng.random())
    fine = put(str(tmp_path), "b.parquet", questions(5))
    parts = [segment(str(path), start, 15) for start in range(0, 60, 15)]
    read = ShardReader(TEXT)(shard(*parts, segment(fine, 0, 5)))
    ids = [*read.row_ids, *codes(read)]
    assert sorted(ids) == sorted(row_id for part in (*parts, segment(fine, 0, 5)) for row_id in part.row_ids())
    good = texts(read)
    assert [good[f"b-{row:09d}"] for row in range(5)] == [f"question {row}" for row in range(5)]


@pytest.mark.parametrize(("then", "code"), [(None, ErrorCode.FILE_UNREADABLE), (3, ErrorCode.FILE_CHANGED)])
def test_a_file_that_goes_or_changes_while_it_is_read(s3: str, then: int | None, code: ErrorCode) -> None:
    path = put(s3, "a.parquet", questions(4000), row_group_size=1000)
    first, last = segment(path, 0, 10), segment(path, 3500, 10)
    reader = ShardReader(TEXT)
    assert len(texts(reader(shard(first)))) == 10
    if then is None:
        open_store(s3).delete("a.parquet")
    else:
        put(s3, "a.parquet", questions(then))
    assert codes(reader(shard(last))) == dict.fromkeys(last.row_ids(), code)


@contextmanager
def cut_off(answers: int, tag: str) -> Iterator[list[str]]:
    """The next answers with content of an object end after three bytes, as of a connection that was reset."""
    cut, events = list[str](), s3_client().meta.events

    def before_send(request: Any, **_: Any) -> AWSResponse | None:
        if len(cut) == answers:
            return None
        cut.append(request.url)
        headers = {"Content-Length": "1000", "ETag": f'"{tag}"'}
        return AWSResponse(request.url, 206, headers, io.BytesIO(b"PAR"))

    events.register("before-send.s3.GetObject", before_send)
    try:
        yield cut
    finally:
        events.unregister("before-send.s3.GetObject", before_send)


@pytest.mark.parametrize(("answers", "comes"), [(1, True), (3, True), (1000, False)])
def test_bytes_that_do_not_come_are_no_damage(s3: str, answers: int, comes: bool) -> None:
    path = put(s3, "a.parquet", questions(6))
    work = shard(segment(path, 2, 3))
    with cut_off(answers, stat_input(path).tag) as cut:
        if comes:
            read = ShardReader(TEXT)(work)
            assert (list(texts(read).values()), read.failed) == (["question 2", "question 3", "question 4"], [])
        else:
            with pytest.raises(StorageError) as refused:
                ShardReader(TEXT)(work)
            assert refused.value.passing
        assert cut


# A file that is replaced while it is read


def replace_quietly(path: str, table: pa.Table, how: str, **options: Any) -> None:
    """Another content of the same size and modification time."""
    before, sink = os.stat(path), pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    data = sink.getvalue().to_pybytes()
    assert len(data) == before.st_size
    if how == "renamed":
        Path(f"{path}.new").write_bytes(data)
        os.rename(f"{path}.new", path)
    else:
        Path(path).write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def asked(word: str, rows: int) -> pa.Table:
    return pa.table({"q": [f"{word} {row:05d} {'x' * 60}" for row in range(rows)]})


def frozen(path: str, start: int, rows: int) -> Segment:
    """Segment as in `segment`, with the fingerprint that a plan has."""
    made = segment(path, start, rows)
    with open_input(path, made.size, made.tag) as file:
        return replace(made, digest=file.digest)


@pytest.mark.parametrize("rows", [50, 8000])  # smaller and larger than what is hashed whole
@pytest.mark.parametrize("how", ["renamed", "in place"])
def test_a_file_of_the_same_size_and_time_is_not_taken_for_the_planned_one(tmp_path: Path, how: str, rows: int) -> None:
    path = put(str(tmp_path), "a.parquet", asked("old", rows), compression="none")
    work = shard(frozen(path, 0, 20))
    assert len(texts(ShardReader(TEXT)(work))) == 20
    replace_quietly(path, asked("new", rows), how, compression="none")
    assert set(codes(ShardReader(TEXT)(work)).values()) == {ErrorCode.FILE_CHANGED}


@pytest.mark.parametrize("quietly", [True, False])
@pytest.mark.parametrize("with_print", [True, False])
def test_rows_of_a_file_that_is_written_to_while_it_is_read_do_not_leave(
    tmp_path: Path, quietly: bool, with_print: bool
) -> None:
    path = put(str(tmp_path), "a.parquet", asked("old", 40_000), compression="none", row_group_size=1000)
    make = frozen if with_print else segment  # older plans have none
    parts = [make(path, start, 1000) for start in range(0, 40_000, 1000)]
    reader = ShardReader(TEXT)
    assert all(text.startswith("old") for text in texts(reader(shard(parts[0]))).values())
    if quietly:
        replace_quietly(path, asked("new", 40_000), "in place", compression="none", row_group_size=1000)
    else:
        put(str(tmp_path), "b.parquet", asked("new", 40_000), compression="none", row_group_size=1000)
        Path(path).write_bytes((tmp_path / "b.parquet").read_bytes())
    for part in parts[1:]:
        read = reader(shard(part))
        assert (texts(read), set(codes(read).values())) == ({}, {ErrorCode.FILE_CHANGED})


def test_rows_of_an_object_that_is_replaced_while_it_is_read_are_the_planned_ones_or_none(s3: str) -> None:
    options: dict[str, Any] = {"compression": "none", "row_group_size": 1000}
    path = put(s3, "a.parquet", asked("old", 40_000), **options)
    parts = [segment(path, start, 100) for start in range(0, 40_000, 100)]
    reader = ShardReader(TEXT)
    assert len(texts(reader(shard(parts[0])))) == 100
    put(s3, "a.parquet", asked("new", 40_000), **options)
    found = [reader(shard(part)) for part in parts[1:]]
    assert all(text.startswith("old") for read in found for text in texts(read).values())
    assert sum(len(read.row_ids) for read in found) < 20_000  # what was fetched before, at most
    assert {error.code for read in found for _, error in read.failed} == {ErrorCode.FILE_CHANGED}


@pytest.mark.parametrize("how", ["chmod", "link", "copied", "moved away and back"])
def test_a_file_that_was_copied_or_given_other_rights_is_still_the_planned_one(tmp_path: Path, how: str) -> None:
    path = put(str(tmp_path), "a.parquet", asked("old", 8000), compression="none")
    parts = [frozen(path, start, 100) for start in range(0, 8000, 100)]
    reader = ShardReader(TEXT)
    first = texts(reader(shard(parts[0])))
    if how == "chmod":
        os.chmod(path, 0o600)
    elif how == "link":
        os.link(path, tmp_path / "other")
    else:
        copy = tmp_path / "copy"
        shutil.copy2(path, copy) if how == "copied" else os.rename(path, copy)
        os.rename(copy, path)
    for again in (reader, ShardReader(TEXT)):
        read = again(shard(*parts))
        assert (len(read.row_ids), read.failed) == (8000, [])
        assert first.items() <= texts(read).items()


# What damage makes Arrow raise


def test_whatever_damage_raises_fails_its_rows_alone(tmp_path: Path) -> None:
    """A plan may hold what a footer no longer promises: rows past the end."""
    path, fine = (put(str(tmp_path), f"{name}.parquet", questions(20), row_group_size=10) for name in "ab")
    read = ShardReader(TEXT)(shard(segment(path, 15, 10), segment(fine, 0, 5)))
    assert len(codes(read)) == 5 or len(codes(read)) == 10
    assert set(codes(read).values()) == {ErrorCode.ROW_UNREADABLE}
    assert [row_id[0] for row_id in read.row_ids].count("b") == 5


def test_a_number_that_the_types_of_other_files_cannot_hold_names_both_types(tmp_path: Path) -> None:
    path = put(str(tmp_path), "a.parquet", pa.table({"q": ["a", "b"], "id": [1, 2**60 + 1]}))
    planned = pa.schema([("q", pa.string()), ("id", pa.float64())])
    ((_, error),) = ShardReader(planned)(shard(segment(path, 0, 2))).failed
    assert error.message.startswith(f"{path}: row 1: column 'id' is int64 in this file and double in the job: ")


def test_far_dates_in_the_old_format_of_spark_stay_what_they_are(tmp_path: Path) -> None:
    far = [datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC), None]
    times = pa.array([one and one.replace(tzinfo=None) for one in far], pa.timestamp("us"))
    path = put(str(tmp_path), "a.parquet", pa.table({"q": ["?"] * 3, "t": times}), use_deprecated_int96_timestamps=True)
    read = ShardReader(pa.schema([("q", pa.string()), ("t", pa.timestamp("us"))]))(shard(segment(path, 0, 3)))
    assert read.table.column("t").to_pylist() == times.to_pylist()
    old_plan = pa.schema([("q", pa.string()), ("t", pa.timestamp("ns"))])
    read = ShardReader(old_plan)(shard(segment(path, 0, 3)))
    assert set(codes(read)) == {"a-000000000", "a-000000001"}  # refused, not another year


def test_a_struct_with_a_field_of_nulls_is_no_damage(tmp_path: Path) -> None:
    chat = pa.struct([("role", pa.string()), ("content", pa.string()), ("tools", pa.null())])
    rows = [[{"role": "user", "content": f"question {row}", "tools": None}] for row in range(40)]
    table = pa.table({"chat": pa.array(rows, pa.list_(chat)), "meta": pa.array([row[0] for row in rows], chat)})
    path = put(str(tmp_path), "a.parquet", table)
    plans = [table.schema, pa.schema([(one.name, settled(plain(one.type))) for one in table.schema])]
    for planned in plans:
        reader = ShardReader(planned)
        for start, count in ((0, 40), (7, 3), (39, 1)):
            read = reader(shard(segment(path, start, count)))
            assert read.failed == []
            assert read.table.column("chat").to_pylist() == rows[start : start + count]
            assert read.table.column("meta").to_pylist() == [row[0] for row in rows[start : start + count]]


def test_few_rows_of_large_cells_are_held_at_once(tmp_path: Path) -> None:
    cells = [f"{row}{'x' * (2 << 20)}" for row in range(64)]
    options: dict[str, Any] = {"use_dictionary": False, "compression": "zstd", "write_batch_size": 1}  # in small pages
    small = put(str(tmp_path), "a.parquet", pa.table({"q": ["small"] * 64}), **options)
    large = put(str(tmp_path), "b.parquet", pa.table({"q": cells}), **options)
    joined = str(tmp_path / "c.parquet")
    with pq.ParquetWriter(joined, TEXT, **options) as writer:
        for path in (small, large):
            writer.write_table(pq.read_table(path))
    del cells
    before = pa.total_allocated_bytes()
    reader = ShardReader(TEXT)
    for start in (62, 70):
        read = reader(shard(segment(joined, start, 4)))
        assert [text[:5] for text in texts(read).values()] == (
            ["small", "small", "0xxxx", "1xxxx"] if start == 62 else ["6xxxx", "7xxxx", "8xxxx", "9xxxx"]
        )
        assert pa.total_allocated_bytes() - before < 100 << 20  # of 128 MB


def test_a_partly_done_shard_of_more_text_than_one_array_holds_is_read(tmp_path: Path) -> None:
    """110 cells of 20 MB: Arrow's usual text ends at 2 GB."""
    cell, rows = "lorem ipsum " * (20_000_000 // 12), 110
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([cell]))
    path = put(str(tmp_path), "a.parquet", pa.table({"q": column}), compression="zstd", store_schema=False)
    one = shard(segment(path, 0, rows))
    ids = list(one.row_ids())
    read = ShardReader(TEXT)(one, frozenset(ids) - {ids[0], ids[-1]})
    assert read.row_ids == [ids[0], ids[-1]]
    assert read.table.column("q").to_pylist() == [cell, cell]
