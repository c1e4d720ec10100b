"""Columns that stand in the path of a file, as Hive, Spark and DuckDB write them: `date=2026-11-24/lang=de/x.parquet`.

All rows of a file have the same value. A column that the file has itself is read from the file.
"""

import re
from collections.abc import Iterable
from urllib.parse import unquote

import pyarrow as pa

NULL = "__HIVE_DEFAULT_PARTITION__"  # as Hive, Spark, DuckDB and pyarrow write a null
_WHOLE_NUMBER = re.compile(r"-?\d{1,18}", re.ASCII)  # of an int64
_FROM_PATH = b"magbatch.from_path"  # in the metadata of a planned column that some file lacks and its path has


def path_keys(path: str) -> dict[str, str | None]:
    """Keys and values in the folders of a path, whatever the input's own folder is; of a key twice, the deepest.

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
    """The type of a key: int64 if all its values are whole numbers, else text; as pyarrow and DuckDB tell it."""
    known = [value for value in values if value is not None]
    if not known:
        return pa.null()
    return pa.int64() if all(_WHOLE_NUMBER.fullmatch(value) for value in known) else pa.string()


def is_from_path(column: pa.Field) -> bool:
    """Whether a file that lacks a planned column has it in its path."""
    return _FROM_PATH in (column.metadata or {})


def from_path(column: pa.Field) -> pa.Field:
    """A planned column that a file may have in its path."""
    return column.with_metadata((column.metadata or {}) | {_FROM_PATH: b""})


def with_keys(table: pa.Table, columns: list[pa.Field], path: str) -> pa.Table:
    """Rows of a file, with those of its path's keys that it has no column for.

    Args:
        table: The rows.
        columns: The planned columns that may stand in a path.
        path: Of the file.
    """
    keys = path_keys(path)
    for column in columns:
        if column.name not in table.column_names:
            scalar = _scalar(keys.get(column.name), column.type)
            table = table.append_column(column.name, pa.repeat(scalar, table.num_rows))
    return table


def _scalar(value: str | None, kind: pa.DataType) -> pa.Scalar:
    """A key's value as `key_type` has it: a number if the planned type is one, else text, for text and bytes.

    Files that have the column themselves may have any type that a number, or text, can be brought to.
    """
    if value is None:
        return pa.scalar(None, pa.null())
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return pa.scalar(int(value), pa.int64()) if is_number else pa.scalar(value, pa.string())
