"""A committed object: read whole and checked, or written from the rows of other objects and read back.

No object is edited in place. Rows move to another object through a `Spool`. Its commit counts only after the object
was read back and found equal to the written bytes.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.counts import counted
from magbatch.errors import OutputError, StorageError
from magbatch.ledger.manifest import Entry
from magbatch.schema import (
    DOCUMENT_FIELDS,
    ERROR_FIELDS,
    ERRORS,
    NEWER_COLUMNS,
    RESULT_FIELDS,
    TOKEN_FIELDS,
    ObjectName,
)
from magbatch.storage import Store
from magbatch.storage.columns import empty_table
from magbatch.totals import COLUMNS, ERROR_COLUMNS, Totals

FOOTER_BYTES = 1 << 16  # end of an object that is read first; most footers are shorter
ROW_GROUP_BYTES = 16 << 20  # uncompressed size; bounds the memory of a spool, and of a reader of one row group


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A committed object with its content.

    Attributes:
        name: Name, which gives kind, shards, attempt and rows.
        records: Number of records.
        bytes: Size (bytes).
        sha256: SHA-256 of the content, hex.
        row_ids: Ids of the rows, each once.
        table: Narrow columns, which totals and summaries need.
        schema_version: Schema version from the footer.
    """

    name: ObjectName
    records: int
    bytes: int
    sha256: str
    row_ids: list[str]
    table: pa.Table
    schema_version: str

    def entry(self) -> Entry:
        """The object's entry in a manifest."""
        return Entry(self.name, len(self.row_ids), self.records, self.bytes, self.sha256)


def row_ids_of(table: pa.Table) -> list[str]:
    """Row ids in a table of records, each once."""
    row_ids: list[Any] = table.column("row_id").unique().to_pylist()
    return row_ids


def read_object(
    store: Store, name: ObjectName, more: dict[str, list[str]], sha256: str | None = None
) -> StoredObject | str:
    """Read an object whole and check its content.

    Args:
        store: Storage of the job's output.
        name: Name of the object.
        more: Columns to keep in the object's table, by kind, in addition to those that totals need.
        sha256: SHA-256 from a manifest; content with another checksum is not parsed. None if unknown.

    Returns:
        The object, or a message about its fault.

    Raises:
        StorageError: The storage is away.
    """
    columns = ["row_id", *(ERROR_COLUMNS if name.kind == ERRORS else COLUMNS), *more.get(name.kind, [])]
    try:
        data = store.read(str(name))
        checksum = hashlib.sha256(data).hexdigest()
        if sha256 not in (None, checksum):
            return f"{name}: its checksum differs from the manifest's"
        file = _open(data)
        table = _read(file, columns)
        _check_types(table, name.kind)
        row_ids = row_ids_of(table)
    except StorageError as error:
        if error.passing:
            raise
        return f"{name}: cannot be read: {error}"
    except (FileNotFoundError, pa.ArrowException, OSError, KeyError, ValueError) as error:
        return f"{name}: cannot be read: {' '.join(str(error).split())}"
    if len(row_ids) != name.rows:
        return f"{name}: holds {counted(len(row_ids), 'row')}, its name says {name.rows}"
    keys = ["row_id"] if name.kind == ERRORS else ["row_id", "sample"]
    if table.select(keys).group_by(keys).aggregate([]).num_rows != table.num_rows:
        return f"{name}: holds a row twice"
    version = (file.schema_arrow.metadata or {}).get(b"magbatch.schema_version", b"").decode(errors="replace")
    return StoredObject(name, table.num_rows, len(data), checksum, row_ids, table, version)


def _open(data: bytes) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(data))


def _check_types(table: pa.Table, kind: str) -> None:
    """Refuse columns that cannot be counted, because their type is not the contract's or they have nulls.

    Raises:
        ValueError: A column is refused; the message names it.
    """
    contract = ({"row_id": pa.string(), "sample": pa.int32()} if kind != ERRORS else {"row_id": pa.string()}) | (
        {**ERROR_FIELDS, **TOKEN_FIELDS} if kind == ERRORS else {**RESULT_FIELDS, **DOCUMENT_FIELDS}
    )
    nullable = TOKEN_FIELDS if kind == ERRORS else {}
    for name in table.column_names:
        column, wanted = table.column(name), contract.get(name)
        if name in {"row_id", *COLUMNS, *ERROR_COLUMNS} and wanted is not None:
            if column.type != wanted:
                raise ValueError(f"its column {name} is {column.type}, not {wanted}")
            if column.null_count and name not in nullable and name not in NEWER_COLUMNS:
                raise ValueError(f"its column {name} has {column.null_count:,} nulls")


def _read(file: pq.ParquetFile, columns: list[str]) -> pa.Table:
    """Read some columns, except those that an older version did not write.

    Raises:
        KeyError: Another column is missing.
    """
    missing = {*TOKEN_FIELDS, *NEWER_COLUMNS} - set(file.schema_arrow.names)
    wanted = list(dict.fromkeys(name for name in columns if name not in missing))
    absent = set(wanted) - set(file.schema_arrow.names)
    if absent:
        raise KeyError(f"it has no column {sorted(absent)[0]}")
    return file.read(columns=wanted, use_threads=False).select(wanted)


def read_columns(store: Store, name: ObjectName, columns: list[str]) -> pa.Table:
    """Read some columns of an object.

    Raises:
        FileNotFoundError: The object is gone.
        OutputError: The object is damaged.
    """
    try:
        return _read(_open(store.read(str(name))), columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise damaged(store, f"{name}: cannot be read: {' '.join(str(error).split())}") from error


def read_totals(store: Store, name: ObjectName) -> Totals:
    """The totals of an object, from its footer alone if that has them.

    Raises:
        FileNotFoundError: The object is gone.
        OutputError: The object is damaged.
    """
    found: Totals | None = None
    # These errors mean that the footer is longer than FOOTER_BYTES, or its totals cannot be parsed.
    with suppress(pa.ArrowException, ValueError):
        end = store.read_end(str(name), FOOTER_BYTES)
        found = Totals.of_footer(pq.read_metadata(io.BytesIO(end)).metadata)
    if found is not None:
        return found
    table = read_columns(store, name, [*(ERROR_COLUMNS if name.kind == ERRORS else COLUMNS)])
    return Totals.of(name.kind, table)


def _with_newer(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Records of an older version, with nulls in the columns that it did not write."""
    newer = {"answer", *TOKEN_FIELDS} if "error_code" in schema.names else NEWER_COLUMNS
    for position, field in enumerate(schema):
        if field.name in newer and field.name not in table.column_names:
            table = table.add_column(position, field, pa.nulls(table.num_rows, field.type))
    return table


def row_groups(store: Store, name: ObjectName, sha256: str | None = None) -> Iterator[pa.Table]:
    """Read all records of an object, one row group at a time.

    Args:
        store: Storage of the job's output.
        name: Name of the object.
        sha256: SHA-256 from a manifest, so that damage is not copied under a new checksum. None if unknown.

    Raises:
        OutputError: The object is gone, damaged or changed.
    """
    try:
        data = store.read(str(name))
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise damaged(store, f"{name}: its checksum differs from the manifest's")
        file = pq.ParquetFile(pa.BufferReader(data))
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, use_threads=False)
    except (FileNotFoundError, pa.ArrowException, OSError) as error:
        raise damaged(store, f"{name}: cannot be read: {' '.join(str(error).split())}") from error


def damaged(store: Store, what: str) -> OutputError:
    """The error for an output with a changed or broken file.

    Args:
        store: Storage of the output.
        what: Path of the file, and its fault in words.
    """
    return OutputError(
        f"{store.root}: the output is damaged:\n  {what}\nFor the whole list: magbatch verify {store.root}"
    )


class Spool:
    """Rows on their way into one new object.

    Rows are compressed as they come: memory holds the compressed object and one row group.

    Args:
        kind: `results` or `errors`.
        schema: Columns of the output contract.
        group_bytes: Size of a row group (bytes, uncompressed).
    """

    def __init__(self, kind: str, schema: pa.Schema, group_bytes: int = ROW_GROUP_BYTES) -> None:
        self._kind = kind
        self._schema = schema
        self._group_bytes = group_bytes
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._row_ids: dict[str, None] = {}
        self._records = 0

    @property
    def row_ids(self) -> list[str]:
        """Ids of the rows so far, each once."""
        return list(self._row_ids)

    @property
    def bytes(self) -> int:
        """Approximate size of the object so far (bytes); rows that are not compressed yet count in full."""
        return self._sink.tell() + sum(int(table.nbytes) for table in self._waiting)

    def add(self, table: pa.Table) -> None:
        """Append records; all samples of a row must go into one object.

        Raises:
            OutputError: The columns are not the contract's.
        """
        table = _with_newer(table, self._schema)
        if not table.schema.equals(self._schema):
            raise OutputError(f"an object of {self._kind} has other columns than this version of magbatch writes")
        self._row_ids.update(dict.fromkeys(row_ids_of(table)))
        self._records += table.num_rows
        self._waiting.append(table)
        if sum(waiting.nbytes for waiting in self._waiting) >= self._group_bytes:
            self._flush()

    def _flush(self) -> None:
        table = pa.concat_tables([empty_table(self._schema), *self._waiting])
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
        self._waiting = []

    def commit(self, store: Store, shards: range, attempt: str, seq: int, more: dict[str, list[str]]) -> StoredObject:
        """Make the object visible, and read it back.

        Args:
            store: Storage of the job's output.
            shards: Shards whose rows the object may hold.
            attempt: Id of the attempt that writes the object.
            seq: Position of the object among the attempt's objects.
            more: Columns to keep in the result's table, as of `read_object`.

        Returns:
            The object as it was read back.

        Raises:
            OutputError: The object that was read back is not the one that was written.
            StorageError: The object is not visible, or cannot be read back.
        """
        self._flush()
        self._writer.close()
        name = ObjectName(self._kind, shards.start, attempt, seq, len(self._row_ids), len(shards))
        data = self._sink.getvalue()
        self._sink = io.BytesIO()
        sha256 = hashlib.sha256(data).hexdigest()
        store.write(str(name), data)
        del data
        found = read_object(store, name, more)
        if isinstance(found, str):
            raise damaged(store, found)
        if (found.sha256, found.row_ids, found.records) != (sha256, self.row_ids, self._records):
            raise damaged(store, f"{name}: differs from the bytes that were just written")
        return found
