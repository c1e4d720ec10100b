"""Every value of an input column comes out as it is, whatever types its files' writers chose."""

from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest

from magbatch.errors import RowError
from magbatch.storage.columns import as_chat, as_keys, as_text, common, convert, converted, plain, settled

TEXT = pa.string()
STRUCT = pa.struct([("a", pa.int64()), ("b", pa.null())])
WORDS = [["x", "y"], [], None, ["z", None]]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["x", None], pa.string_view()),
        ([b"x", None], pa.binary_view()),
        (["x", None, "x"], pa.dictionary(pa.int32(), TEXT)),
        (WORDS, pa.list_view(TEXT)),
        (WORDS, pa.large_list_view(TEXT)),
        (WORDS, pa.list_(pa.string_view())),
        (WORDS, pa.large_list(pa.dictionary(pa.int8(), TEXT))),
        ([["x", "y"], None, ["z", None]], pa.list_(pa.string_view(), 2)),
        ([{"a": 1, "b": None}, None, {"a": None, "b": None}], STRUCT),
        ([[{"a": 1, "b": None}], [], None, [None, {"a": 2, "b": None}]], pa.list_(STRUCT)),
        ([[("k", None)], None, [], [("l", None), ("m", None)]], pa.map_(TEXT, pa.null())),
        ([UUID(int=7), None], pa.uuid()),
        (["{}", None], pa.json_()),
        ([b"0123", None], pa.binary(4)),
        ([None, None], pa.null()),
    ],
    ids=str,
)
def test_a_value_is_the_same_in_the_plain_type(values: list[Any], kind: pa.DataType) -> None:
    array = pa.array(values, kind)
    wanted = settled(plain(kind))
    for start in range(len(values)):
        made = convert(array.slice(start), wanted)
        made.validate(full=True)
        assert made.type == wanted
        assert made.to_pylist() == values[start:]
        assert convert(made, wanted) is made


def test_the_fields_of_a_struct_are_known_by_their_names() -> None:
    array = pa.array([{"a": 1, "b": "x"}, None, {"a": 2, "b": None}])
    wider = pa.struct([("b", pa.large_string()), ("c", pa.int8()), ("a", pa.float64())])
    assert convert(array.slice(1), wider).to_pylist() == [None, {"b": None, "c": None, "a": 2.0}]


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (TEXT, pa.null(), TEXT),
        (pa.null(), pa.int64(), pa.int64()),
        (TEXT, pa.large_string(), pa.large_string()),
        (pa.int32(), pa.int64(), pa.int64()),
        (pa.int64(), pa.float64(), pa.float64()),
        (pa.list_(pa.null()), pa.list_(TEXT), pa.list_(TEXT)),
        (pa.struct([("a", pa.null())]), pa.struct([("a", TEXT)]), pa.struct([("a", TEXT)])),
        (pa.uuid(), pa.uuid(), pa.uuid()),
        (pa.uuid(), pa.binary(16), pa.binary(16)),
    ],
    ids=str,
)
def test_two_types_have_one_that_holds_both(first: pa.DataType, second: pa.DataType, both: pa.DataType) -> None:
    assert common("c", first, second) == both


def test_types_that_have_none_are_named() -> None:
    with pytest.raises(RowError) as refused:
        common("c", TEXT, pa.int64())
    assert refused.value.message == "the column 'c' is int64 here, but string in other files"


def test_bytes_are_text_where_text_is_read() -> None:
    order = pa.struct([("no", pa.binary()), ("lines", pa.list_(pa.binary())), ("total", pa.int64())])
    assert as_text(order) == pa.struct(
        [("no", pa.large_string()), ("lines", pa.list_(pa.large_string())), ("total", pa.int64())]
    )
    part = pa.struct([("text", pa.binary()), ("image", pa.binary()), ("picture", pa.struct([("bytes", pa.binary())]))])
    assert as_chat(part) == pa.struct(
        [("text", pa.large_string()), ("image", pa.binary()), ("picture", pa.struct([("bytes", pa.binary())]))]
    )


def test_bytes_that_are_no_text_are_named_with_their_column() -> None:
    table = pa.table({"q": pa.array([b"caf\xc3\xa9", b"\xff\xfe"], pa.binary())})
    columns = pa.schema([("q", pa.large_string())])
    assert converted(table.slice(0, 1), columns).column("q").to_pylist() == ["café"]
    with pytest.raises(RowError, match=r"^row 1: column 'q' is binary in this file and large_string in the job: "):
        converted(table.slice(1, 1), columns, row=1)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([UUID(int=1), UUID(int=2)], pa.uuid()),
        ([b"\xff\x00", b"\xff\x01"], pa.binary(2)),
        ([253402300800000000, 253402300800000001], pa.timestamp("us", tz="Mars/Olympus")),  # Python ends at year 9999
        ([2932897, 2932898], pa.date32()),
        ([[1.5], [2.5]], pa.list_(pa.float64())),
        ([{"t": 253402300800}, {"t": 253402300801}], pa.struct([("t", pa.timestamp("s"))])),
        ([[("k", 1)], [("k", 2)]], pa.map_(TEXT, pa.int64())),
        ([True, False], pa.bool_()),
    ],
    ids=str,
)
def test_any_value_has_a_key(values: list[Any], kind: pa.DataType) -> None:
    first, second, third = convert(pa.array([*values, values[0]], kind), as_keys(plain(kind))).to_pylist()
    assert first == third
    assert first != second
