"""Columns of every type that Parquet files have, as ids and carried, through all that reads them."""

import datetime as dt
import io
import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.book import carry_out
from support.small_job import SmallJob

from magbatch.errors import InputError, SpecError
from magbatch.jobs.choice import Choice
from magbatch.jobs.compact import merge_objects
from magbatch.jobs.retry import Retry, merge, prepare
from magbatch.ledger.verify import verify
from magbatch.pipeline.prepare import Preparer
from magbatch.plan.column_kinds import check_expected
from magbatch.plan.plan import Plan
from magbatch.report.scan import DuplicateIds, Slowest
from magbatch.schema import ERRORS, RESULTS

UUIDS = [uuid.UUID(int=1), uuid.UUID(int=2)]
DAYS = [dt.date(2026, 1, 1), dt.date(1, 1, 1), None]


def extended(kind: pa.DataType, values: list[Any], storage: pa.DataType) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, pa.array(values, storage))


def uuids() -> pa.Array:
    return extended(pa.uuid(), [*(one.bytes for one in UUIDS), None], pa.binary(16))


def dictionary(values: pa.Array, **options: Any) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0, 1, None], pa.int8()), values, **options)


def numbers() -> Iterator[tuple[str, pa.Array]]:
    """Each of one value, its opposite or another, and a null."""
    for bits in (8, 16, 32, 64):
        yield f"int{bits}", pa.array([1 - 2 ** (bits - 1), 1, None], getattr(pa, f"int{bits}")())
        yield f"uint{bits}", pa.array([2**bits - 1, 1, None], getattr(pa, f"uint{bits}")())
    for unit in ("s", "ms", "us", "ns"):
        yield f"duration_{unit}", pa.array([1, -2, None], pa.duration(unit))
        for zone in (None, "UTC", "Europe/Paris", "+05:30", "Nowhere/Land"):
            yield f"timestamp_{unit}_{zone}", pa.array([1, -2, None], pa.timestamp(unit, zone))
    for make, digits in ((pa.decimal32, 5), (pa.decimal64, 15), (pa.decimal128, 38), (pa.decimal256, 76)):
        yield f"decimal{digits}", pa.array([Decimal("1.2"), Decimal("-3.4"), None], make(digits, 1))


KEPT: dict[str, pa.Array] = {
    "bool": pa.array([True, False, None]),
    **dict(numbers()),
    "float16": pa.array([np.float16(1.5), np.float16(-2), None], pa.float16()),
    "float32": pa.array([0.1, -0.0, None], pa.float32()),
    "float64": pa.array([0.1, float("inf"), None]),
    "string": pa.array(["a", "", None]),
    "large_string": pa.array(["a", "", None], pa.large_string()),
    "string_view": pa.array(["a", "a text that is not inlined", None], pa.string_view()),
    "binary": pa.array([b"\xff", b"", None]),
    "large_binary": pa.array([b"\xff", b"", None], pa.large_binary()),
    "binary_view": pa.array([b"\xff" * 20, b"", None], pa.binary_view()),
    "fixed_size_binary": pa.array([b"abcd", b"\0\0\0\0", None], pa.binary(4)),
    "uuid": uuids(),
    "date32": pa.array(DAYS),
    "date64": pa.array(DAYS, pa.date64()),
    "time32_s": pa.array([1, 2, None], pa.time32("s")),
    "time32_ms": pa.array([1, 2, None], pa.time32("ms")),
    "time64_us": pa.array([1, 2, None], pa.time64("us")),
    "time64_ns": pa.array([1, 2, None], pa.time64("ns")),
    "dictionary": dictionary(pa.array(["a", "b"])),
    "dictionary_ordered": dictionary(pa.array(["a", "b"]), ordered=True),
    "dictionary_of_numbers": dictionary(pa.array([7, 8])),
    "dictionary_of_times": dictionary(pa.array([7, 8], pa.timestamp("us", "UTC"))),
    "list": pa.array([[1], [], None]),
    "large_list": pa.array([[1], [], None], pa.large_list(pa.int8())),
    "fixed_size_list": pa.array([[1, 2], [3, None], None], pa.list_(pa.int32(), 2)),
    "list_view": pa.array([[1], [], None], pa.list_view(pa.int32())),
    "large_list_view": pa.array([[1], [], None], pa.large_list_view(pa.int32())),
    "list_of_dictionaries": pa.array([["a"], ["b", "a"], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "list_of_lists": pa.array([[[1], None], [], None], pa.list_(pa.list_(pa.int8()))),
    "struct": pa.array([{"a": 1, "b": "x"}, {"a": None, "b": None}, None]),
    "struct_with_nulls": pa.array([{"a": 1, "n": None}, {"a": 2, "n": None}, None]),
    "struct_of_dots": pa.array([{"a.b": 1}, {"a.b": 2}, None]),
    "struct_with_uuid": pa.StructArray.from_arrays([uuids()], ["u"], mask=pa.array([False, False, True])),
    "list_of_uuids": pa.ListArray.from_arrays(pa.array([0, 1, None, 2]), uuids().slice(0, 2)),
    "map": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int32())),
    "map_sorted": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int32(), keys_sorted=True)),
    "map_of_lists": pa.array([[("a", [1])], [], None], pa.map_(pa.string(), pa.list_(pa.int32()))),
    "null": pa.nulls(3),
    "list_of_nulls": pa.array([[None], [], None], pa.list_(pa.null())),
    "bool8": extended(pa.bool8(), [1, 0, None], pa.int8()),
    "json": extended(pa.json_(), ['{"a":1}', "[]", None], pa.string()),
    "opaque": extended(pa.opaque(pa.int32(), "t", "v"), [1, 2, None], pa.int32()),
    "tensor": extended(pa.fixed_shape_tensor(pa.int8(), [2]), [[1, 2], [3, 4], None], pa.list_(pa.int8(), 2)),
}
REFUSED_BY_WRITERS = {
    "run_end_encoded": pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", None])),
    "interval": pa.array([(1, 2, 3), None, None], pa.month_day_nano_interval()),
    "union": pa.UnionArray.from_dense(
        pa.array([0, 1, 0], pa.int8()), pa.array([0, 0, 1], pa.int32()), [pa.array([1, 2]), pa.array(["x"])]
    ),
    "empty_struct": pa.array([{}, {}, None], pa.struct([])),
    "dictionary_of_structs": dictionary(pa.array([{"a": 1}, {"a": 2}])),
}


def cells(column: pa.ChunkedArray) -> list[str]:
    """The values, as text that tells all of them apart; Arrow's own where Python has none."""
    try:
        return [repr(value) for value in column.to_pylist()]
    except (ValueError, OverflowError):  # a zone that is known nowhere
        return [repr(value) for value in column.cast(pa.int64()).to_pylist()]


def written(job: SmallJob, kind: str) -> pa.Table:
    """All records of a kind."""
    files = [io.BytesIO(job.ledger.store.read(name)) for name in job.objects(kind)]
    return pa.concat_tables([pq.read_table(file) for file in files]).sort_by("n")


def test_what_no_writer_writes_needs_no_rule() -> None:
    for column in REFUSED_BY_WRITERS.values():
        with pytest.raises((pa.ArrowNotImplementedError, pa.ArrowInvalid)):
            pq.write_table(pa.table({"x": column}), io.BytesIO())


def test_all_types_are_carried_as_they_are(job: SmallJob) -> None:
    """Row 1 is a dead letter at first, then it is asked again."""
    questions = ["What?", "What?" * 200, "What?"]
    table = pa.table({"n": [0, 1, 2], "question": questions} | KEPT)
    job.write(table)
    stored = pq.read_table(f"{job.input}/a.parquet")
    job.set("input", columns={"id": "n", "prompt": "question"}, carry=list(KEPT))
    job.set("limits", max_prompt_tokens=100)
    job.plan = Plan.from_bytes(job.plan.to_bytes())
    job.answer()
    assert carry_out(job.ledger, job.spec(), job.plan) == []
    merge_objects(job.ledger, 1 << 28, lambda: None)
    assert verify(job.ledger).problems == ()
    for kind, rows in ((RESULTS, [0, 2]), (ERRORS, [1])):
        found = written(job, kind)
        for name in KEPT:
            assert cells(found.column(name)) == [cells(stored.column(name))[row] for row in rows], name

    again = prepare(job.ledger, Choice(), ["limits.max_prompt_tokens=2000"])
    assert isinstance(again, Retry)
    place = SmallJob(Path(job.root))
    place.sections = job.sections | {"limits": {"max_prompt_tokens": 2000}, "output": {"path": again.spec.output.path}}
    place.plan, place.output = again.plan, again.spec.output.path
    place.preparer = Preparer(place.job, place.steps)
    place.answer()
    assert carry_out(place.ledger, place.spec(), place.plan) == []
    merge(again, lambda: None)
    assert verify(job.ledger).problems == ()
    found = written(job, RESULTS)
    for name in KEPT:
        assert cells(found.column(name)) == cells(stored.column(name)), name


def test_every_type_is_an_id(job: SmallJob) -> None:
    table = pa.table({"n": [0, 1, 2], "question": ["What?"] * 3} | KEPT)
    job.write(table)
    job.write(table.slice(1, 1), "b.parquet")  # the second row of all comes twice
    job.set("input", columns={"id": "n", "prompt": "question"}, carry=list(KEPT))
    job.answer()
    assert job.finalise() == []
    results = written(job, RESULTS)
    alike = ("int", "uint", "timestamp_s_", "timestamp_ms_", "timestamp_ns_")  # as their like
    for name in (name for name in KEPT if not name.startswith(alike)):
        with DuplicateIds(name) as ids:
            ids.observe(RESULTS, results)
            assert ids.count() == (0 if name == "null" else 1), name
        slowest = Slowest(name)
        slowest.observe(RESULTS, results)
        shown = [row["id"] for row in slowest.rows()]
        assert len(shown) == 4
        assert shown.count(None) == (4 if name == "null" or name.endswith("Nowhere/Land") else 1), name
        json.dumps(shown)


# What other writers make


DUCKDB = {
    "hugeint": "170141183460469231731687303715884105727::hugeint",
    "interval": "interval '1 month 2 days 3 seconds'",
    "enum": "'a'::enum('a', 'b')",
    "uuid": "uuid()",
    "timetz": "'12:00:00+02'::timetz",
    "bit": "'0101'::bit",
    "union": "union_value(n := 1)",
    "timestamptz": "'2026-01-01'::timestamptz",
    "blob": "'\\xAA'::blob",
    "map": "map{'a': 1}",
    "struct": "{'a': 1, 'b': [1]}",
    "json": "'{}'::json",
    "variant": "1::variant",
    "infinite": "'infinity'::timestamp",
}
POLARS = {
    "categorical": pl.Series(["a", "b", None], dtype=pl.Categorical),
    "enum": pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])),
    "duration": pl.Series([dt.timedelta(1), None, dt.timedelta(2)]),
    "array": pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.Int8, 2)),
    "struct": pl.Series([{"a": 1}, {"a": None}, None]),
    "null": pl.Series([None, None, None]),
}


def write_other(folder: Path) -> None:
    """A file written by DuckDB and a file written by polars, with all of these types."""
    columns = ", ".join(f"case when i < 2 then {value} end as {name}" for name, value in DUCKDB.items())
    duckdb.sql(f"copy (select i as n, 'What?' as question, {columns} from range(3) t(i)) to '{folder}/duck.parquet'")
    frame = pl.DataFrame({"n": [0, 1, 2], "question": ["What?"] * 3} | POLARS)
    frame.write_parquet(f"{folder}/polars.parquet")


@pytest.mark.parametrize(("file", "names"), [("duck", DUCKDB), ("polars", POLARS)])
def test_types_of_other_writers_are_carried_as_they_are(job: SmallJob, file: str, names: dict[str, Any]) -> None:
    Path(job.input).mkdir()
    write_other(Path(job.input))
    path = f"{job.input}/{file}.parquet"
    job.set("input", path=path, columns={"id": "n", "prompt": "question"}, carry=list(names))
    job.answer()
    assert job.finalise() == []
    found, stored = written(job, RESULTS), pq.read_table(path)
    for name in names:
        assert cells(found.column(name)) == cells(stored.column(name)), name


def test_a_type_that_no_reader_knows_is_said(job: SmallJob) -> None:
    Path(job.input).mkdir()
    wide = pl.Series([1, None, 2**100], dtype=pl.Int128)
    pl.DataFrame({"question": ["What?"] * 3, "x": wide}).write_parquet(f"{job.input}/a.parquet")
    job.set("input", columns={"prompt": "question"})
    with pytest.raises(InputError, match=r"a column has a type that is not known here \(Integers with more than 64"):
        job.plan  # noqa: B018


# Files that differ


MIXED: dict[str, tuple[pa.Array, pa.Array]] = {
    "whole numbers and doubles": (pa.array([1, 2]), pa.array([1.5, None])),
    "whole numbers": (pa.array([1, 2], pa.int8()), pa.array([2**40, None])),
    "whole numbers and decimals": (pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)), pa.array([2**40, 1])),
    "decimals": (pa.array([Decimal("1.5")] * 2, pa.decimal128(10, 2)), pa.array([Decimal("1.2345")] * 2)),
    "decimals and doubles": (pa.array([Decimal("1.10"), None], pa.decimal128(10, 2)), pa.array([0.1, 1])),
    "texts": (pa.array(["a", None]), pa.array(["c", "d" * 30], pa.string_view())),
    "texts and dictionaries": (pa.array(["a", None], pa.large_string()), pa.array(["c", "d"]).dictionary_encode()),
    "bytes": (pa.array([b"a", None], pa.binary_view()), pa.array([b"cc", b"dd"], pa.binary(2))),
    "durations": (pa.array([1, 2], pa.duration("s")), pa.array([1, None], pa.duration("ms"))),
    "lists": (pa.array([[1], None]), pa.array([[2], []], pa.large_list_view(pa.int64()))),
    "lists of decimals": (pa.array([[Decimal("1.5")], None]), pa.array([[2**40], []])),
    "orders of fields": (
        pa.array([{"a": 1, "b": "x"}] * 2),
        pa.array([{"b": "y", "a": 2}] * 2, pa.struct([("b", pa.string()), ("a", pa.int64())])),
    ),
    "nulls and lists": (pa.nulls(2), pa.array([["a"], ["b"]])),
    "truths": (extended(pa.bool8(), [1, None], pa.int8()), pa.array([True, False])),
}


def two_files(job: SmallJob, first: pa.Array, second: pa.Array) -> list[Any]:
    job.write(pa.table({"n": [0, 1], "question": ["What?"] * 2, "x": first}))
    job.write(pa.table({"n": [2, 3], "question": ["What?"] * 2, "x": second}), "b.parquet")
    job.set("input", columns={"id": "x", "prompt": "question"}, carry=["n"])
    return first.to_pylist() + second.to_pylist()


@pytest.mark.parametrize("what", MIXED)
def test_types_that_differ_among_files_become_one_and_no_value_changes(job: SmallJob, what: str) -> None:
    values = two_files(job, *MIXED[what])
    job.answer()
    assert job.finalise() == []
    found = written(job, RESULTS).column("x").to_pylist()
    if what == "decimals and doubles":
        assert found == [1.1, None, 0.1, 1]
    else:
        assert found == values


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (pa.array(["a", "b"]), pa.array([1, 2]), "int64 here, but string"),
        (pa.array([True, None]), pa.array([1, 2]), "int64 here, but bool"),
        (KEPT["uuid"].slice(0, 2), pa.array(["x", "y"]), "string here, but extension<arrow.uuid>"),
        (pa.array([1, 2], pa.timestamp("us")), pa.array([1, 2], pa.timestamp("us", "UTC")), "here, but timestamp[us]"),
        (pa.array([[1], None]), pa.array([1, 2]), "int64 here, but list<"),
    ],
)
def test_types_that_are_none_in_common_are_refused_by_plan(
    job: SmallJob, first: pa.Array, second: pa.Array, said: str
) -> None:
    two_files(job, first, second)
    with pytest.raises(InputError) as error:
        job.plan  # noqa: B018
    assert "b.parquet: the column 'x' is " in str(error.value)
    assert said in str(error.value)


def test_a_decimal_that_no_double_holds_fails_its_row_alone(job: SmallJob) -> None:
    wide = pa.array([Decimal("12345678901234567890.12"), Decimal("1.10")], pa.decimal128(22, 2))
    two_files(job, wide, pa.array([0.5, 1.5]))
    job.answer()
    (letter,) = job.records(ERRORS)
    assert "column 'x' is decimal128(22, 2) in this file and double in the job" in letter["message"]
    assert sorted(row["x"] for row in job.records()) == [0.5, 1.1, 1.5]


@pytest.mark.parametrize("name", ["uuid", "duration_us", "binary", "list", "struct", "map"])
def test_what_has_no_text_is_not_expected(name: str) -> None:
    with pytest.raises(SpecError, match=r"input\.columns\.expected: the column 'x' is "):
        check_expected(pa.schema([("x", KEPT[name].type)]), "x")
