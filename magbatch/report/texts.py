"""Values of a user's columns as text for people, whatever their type."""

import json

import pyarrow as pa

from magbatch.storage.columns import is_bytes


def as_text(column: pa.ChunkedArray) -> list[str | None]:
    """A user's ids for people, also those that Python has no value for: a year past 9999, text that is no UTF-8."""
    if isinstance(column.type, pa.UuidType):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if is_bytes(column.type):
        return [None if value is None else value.decode(errors="replace") for value in column.to_pylist()]
    try:
        values = column.cast(pa.string()).cast(pa.binary()).to_pylist()
    except pa.ArrowException:  # nested, or in a time zone that nobody knows
        return [_nested_text(value) for value in column]
    return [None if value is None else value.decode(errors="replace") for value in values]


def _nested_text(value: pa.Scalar) -> str | None:
    try:
        found = value.as_py()
        return None if found is None else json.dumps(found, ensure_ascii=False, default=str)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):  # what Python has no value for
        return None
