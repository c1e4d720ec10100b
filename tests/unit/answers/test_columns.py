"""A column's type depends on the schema alone; a schema without an Arrow type is stored as JSON text."""

from datetime import date
from typing import Any

import pyarrow as pa
import pytest

from magbatch.answers.columns import MAX_NODES, column_of
from magbatch.answers.exact import Number

TEXT = pa.large_string()


@pytest.mark.parametrize(
    ("schema", "kind", "value", "stored"),
    [
        ({"type": "integer"}, pa.int64(), Number("3.0"), 3),
        ({"type": "number"}, pa.float64(), 3, 3.0),
        ({"type": "boolean"}, pa.bool_(), True, True),
        ({"type": "string"}, TEXT, "a", "a"),
        ({"type": "string", "format": "date"}, pa.date32(), "2026-03-01", date(2026, 3, 1)),
        ({"type": "string", "format": "uuid"}, TEXT, "a", "a"),
        ({"type": ["integer", "null"]}, pa.int64(), None, None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, pa.int64(), 3, 3),
        ({"oneOf": [{"type": "null"}, {"type": "integer"}]}, pa.int64(), 3, 3),
        ({"allOf": [{"type": "integer"}]}, pa.int64(), 3, 3),
        ({"enum": ["a", None]}, TEXT, "a", "a"),
        ({"const": "a"}, TEXT, "a", "a"),
        ({"type": "array", "items": {"type": "integer"}}, pa.list_(pa.int64()), [1], [1]),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, pa.struct([("a", pa.int64())]), {}, {"a": None}),
        ({"$ref": "#/$defs/a"}, pa.int64(), 3, 3),
        # JSON text: Arrow has no one type.
        ({"$ref": "#/$defs/none"}, TEXT, 3, "3"),
        ({"$ref": "#/$defs/loop"}, TEXT, 3, "3"),
        ({"$ref": "other.json"}, TEXT, 3, "3"),
        ({"type": ["integer", "string"]}, TEXT, 3, "3"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, TEXT, "a", '"a"'),
        ({"enum": [1, "a"]}, TEXT, 1, "1"),
        ({"type": "object"}, TEXT, {"é": Number("1.50")}, '{"é": 1.50}'),
        ({"type": "array"}, TEXT, [1], "[1]"),
        (True, TEXT, [1], "[1]"),
    ],
)
def test_each_schema_has_its_column(schema: Any, kind: pa.DataType, value: Any, stored: Any) -> None:
    column = column_of(schema, {"$defs": {"a": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}}})
    assert column.kind == kind
    assert column(value) == stored


def test_a_column_of_too_many_parts_is_json_text() -> None:
    wide = {"type": "object", "properties": {f"p{number}": {"type": "integer"} for number in range(MAX_NODES)}}
    assert column_of(wide, wide).kind == TEXT
    del wide["properties"]["p0"]
    assert pa.types.is_struct(column_of(wide, wide).kind)
