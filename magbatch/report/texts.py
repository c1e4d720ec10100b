"""Values of user columns of any type, as text for people."""

import json

import pyarrow as pa

from magbatch.arrow_types import ChunkedArray, Scalar
from magbatch.storage.columns import is_bytes


def as_text(column: ChunkedArray) -> list[str | None]:
    """Convert user ids to text. Ids without a Python value get text too, such as years past 9999 or invalid UTF-8."""
    if isinstance(column.type, pa.UuidType):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if is_bytes(column.type):
        return [None if value is None else value.decode(errors="replace") for value in column.to_pylist()]
    try:
        values = column.cast(pa.string()).cast(pa.binary()).to_pylist()
    except pa.ArrowException:  # a nested type, or an unknown time zone
        return [_nested_text(value) for value in column]
    return [None if value is None else value.decode(errors="replace") for value in values]


def _nested_text(value: Scalar) -> str | None:
    try:
        found = value.as_py()
        return None if found is None else json.dumps(found, ensure_ascii=False, default=str)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):  # the value has no Python equivalent
        return None
