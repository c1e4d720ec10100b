"""Partition columns in file paths, as Hive, Spark and DuckDB write them: `date=2026-11-24/lang=de/x.parquet`.

All rows of a file share the value. A column that the file itself holds is read from the file.
"""

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from magbatch.arrow_types import Field

NULL = "__HIVE_DEFAULT_PARTITION__"  # null, as Hive, Spark, DuckDB and pyarrow write it
_WHOLE_NUMBER = re.compile(r"-?\d{1,18}", re.ASCII)  # whole number that fits an int64
_FROM_PATH = b"magbatch.from_path"  # key in the metadata of a planned column that some files have in their path only


def path_keys(path: str) -> dict[str, str | None]:
    """Return the keys and values in the folders of a path. Of a repeated key, the deepest folder counts.

    Folders above `input.path` count too.

    >>> path_keys("s3://bucket/in/date=2026-11-24/lang=__HIVE_DEFAULT_PARTITION__/x=1.parquet")
    {'date': '2026-11-24', 'lang': None}
    """
    found = dict[str, str | None]()
    for folder in path.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if key and equals:
            found[_decoded(key)] = None if value == NULL else _decoded(value)
    return found


def _decoded(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def key_type(values: Iterable[str | None]) -> pa.DataType:
    """Return the type of a key: int64 if all its values are whole numbers, else text. Same rule as pyarrow and DuckDB.

    Args:
        values: Values of the key in all paths; None for a null.
    """
    known = [value for value in values if value is not None]
    if not known:
        return pa.null()
    return pa.int64() if all(_WHOLE_NUMBER.fullmatch(value) for value in known) else pa.string()


def is_from_path(column: Field) -> bool:
    """Whether files may have a planned column in their path."""
    return _FROM_PATH in (column.metadata or {})


def from_path(column: Field) -> Field:
    """Return a planned column, marked as one that files may have in their path."""
    return column.with_metadata(dict[Any, Any](column.metadata or {}) | {_FROM_PATH: b""})


def with_keys(table: pa.Table, columns: list[Field], path: str) -> pa.Table:
    """Add the columns that a file has only in its path.

    Args:
        table: Rows of the file.
        columns: Planned columns that may be in a path.
        path: Path or URL of the file.
    """
    keys = path_keys(path)
    for column in columns:
        if column.name not in table.column_names:
            scalar = _scalar(keys.get(column.name), column.type)
            table = table.append_column(column.name, pa.repeat(scalar, table.num_rows))
    return table


def _scalar(value: str | None, kind: pa.DataType) -> pa.NullScalar | pa.Int64Scalar | pa.StringScalar:
    """Return a key's value as int64 if the planned type is a number, else as text.

    The planned type may be wider than int64 or text, since other files hold the column themselves; it is cast later.
    """
    if value is None:
        return pa.scalar(None, pa.null())
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return pa.scalar(int(value), pa.int64()) if is_number else pa.scalar(value, pa.string())
