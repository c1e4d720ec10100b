"""Parquet footers, read in a sandbox, so that a damaged or hostile footer harms only its own file.

Sizes in a footer are checked before any memory is allocated for them. Some footers end the process that parses them:
Arrow aborts at the metadata of an encrypted column. This ends a sandbox's process and fails a single file.
"""

import functools
import io
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.counts import counted
from magbatch.errors import ErrorCode, ForeignError, RowError, SandboxError, SandboxMemoryError, SandboxTimeoutError
from magbatch.sandbox import Sandboxes
from magbatch.storage.formats import HEAD_BYTES, by_bytes
from magbatch.storage.input_file import InputFile

PROCESSES = 4
TIMEOUT_S = 120.0
MEMORY_MB = 2048
TAIL_BYTES = 64 << 10  # end of a file that is read first; most footers are shorter, so one request is enough
MAX_FOOTER_BYTES = 128 << 20  # bounds the memory of a parsed footer
MIN_FILE_BYTES = 12  # two marks and the footer's length, 4 bytes each
DENSE_ROWS = 1 << 20  # rows that a file of any size may hold: equal rows take almost no space
ROWS_PER_BYTE = 64  # most rows for each byte of a file with more rows than DENSE_ROWS
LISTED_NAMES = 50  # columns of a file that a message names
# Writers shorten long bounds in a footer to 64 bytes or more, so a shorter bound is a whole, short value.
SHORT_BYTES = 64
Replies = Iterator[tuple[dict[str, Any], bytes | None]]


@dataclass(frozen=True, slots=True)
class PrefixColumn:
    """The column that a job's prompts start with.

    Attributes:
        column: Name of the column.
        document: Whether its values stand for documents or images, which are long even if their names are short.
        forced: Whether the spec names the column in `input.group`.
    """

    column: str
    document: bool = False
    forced: bool = False


@dataclass(frozen=True, slots=True)
class ColumnStats:
    """Statistics of the prefix column in one file, from its footer.

    Attributes:
        may_repeat: Whether the values are stored in dictionaries and may be long, so that rows may share them.
        column_bytes: Size of the column (bytes, compressed).
        value_bytes: Mean size of a value (bytes, decompressed).
        other_row_bytes: Size of a row's other columns that the job reads (bytes, decompressed): mean of the row group
            with the largest rows.
    """

    may_repeat: bool
    column_bytes: int
    value_bytes: int
    other_row_bytes: int


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Content of a file's footer.

    Attributes:
        rows: Number of rows.
        names: Names of the columns, at most LISTED_NAMES.
        schema: Columns that the job reads; a name that the file has twice is there twice.
        prefix: Statistics of the prefix column; None if the file lacks it, or it is made of other columns.
        row_bytes: Size of a row's columns that the job reads (bytes, decompressed): mean of the row group with the
            largest rows.
    """

    rows: int
    names: list[str]
    schema: pa.Schema
    prefix: ColumnStats | None = None
    row_bytes: int = 0


class PartialFile(io.BytesIO):
    """A file of which some ranges are known; all other bytes read as zeros.

    Args:
        size: Size of the whole file (bytes).
        ranges: Offset and content of each known range.
    """

    def __init__(self, size: int, ranges: list[tuple[int, bytes]]) -> None:
        super().__init__()
        self._size, self._ranges, self._at = size, ranges, 0

    def tell(self) -> int:
        """Position in the file; see `io.IOBase`."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; see `io.IOBase`."""
        self._at = max(0, {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the position; see `io.IOBase`."""
        length = max(0, self._size - self._at if size is None or size < 0 else min(size, self._size - self._at))
        data = bytearray(length)
        for begin, content in self._ranges:
            first, end = max(begin, self._at), min(begin + len(content), self._at + length)
            if first < end:
                data[first - self._at : end - self._at] = memoryview(content)[first - begin : end - begin]
        self._at += length
        return bytes(data)


def read_footer(file: InputFile, columns: list[str], prefix: PrefixColumn | None) -> FileFacts:
    """Read and check the footer of an input file.

    Args:
        file: Input file, open for reading ranges.
        columns: Columns that the job reads.
        prefix: Column that prompts start with; None if rows are not grouped.

    Raises:
        RowError: The footer is damaged (`file_unreadable`), or the file changed since the listing (`file_changed`).
        FileNotFoundError: The file was deleted since the listing.
        StorageError: The storage does not answer.
        ClusterError: No sandbox can be started here.
    """
    head = {"size": file.size_bytes, "columns": columns, "prefix": asdict(prefix) if prefix is not None else None}
    try:
        (reply,) = sandboxes()(head, footer_bytes(file))
    except SandboxTimeoutError as error:
        raise _unreadable(f"its footer takes longer than {TIMEOUT_S:g} s") from error
    except SandboxMemoryError as error:
        raise _unreadable(f"its footer needs more than {MEMORY_MB} MB of memory") from error
    except SandboxError as error:
        raise _unreadable(f"its footer breaks the Parquet library: {error}") from error
    assert reply.body is not None, "each reply of this sandbox holds a schema"
    schema = pa.ipc.read_schema(pa.py_buffer(reply.body))
    stats = ColumnStats(**reply.head["prefix"]) if reply.head["prefix"] else None
    return FileFacts(reply.head["rows"], reply.head["names"], schema, stats, reply.head["row_bytes"])


@functools.cache
def sandboxes() -> Sandboxes:
    """The sandboxes of this process; each takes 70 MB while idle."""
    count = min(PROCESSES, os.cpu_count() or 1)
    return Sandboxes(count, "magbatch.plan.footers:handler", {}, timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)


def footer_bytes(file: InputFile) -> bytes:
    """Read the end of a Parquet file: the footer, its length (4 bytes), and the mark PAR1.

    Source: parquet.apache.org/docs/file-format.

    Raises:
        RowError: The file does not end like a Parquet file (`file_unreadable`).
    """
    size = file.size_bytes
    if size < MIN_FILE_BYTES:
        raise _foreign(file) or _unreadable(f"{counted(size, 'byte is', 'bytes are')} too few for a Parquet file")
    tail = file.read_at(max(0, size - TAIL_BYTES), TAIL_BYTES)
    if tail[-4:] == b"PARE":
        raise _unreadable("its footer is encrypted; give unencrypted files")
    if tail[-4:] != b"PAR1":
        raise _foreign(file) or _unreadable("it does not end as a Parquet file does: another format, or cut off")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > size - 4:
        raise _unreadable(f"its footer of {length:,} bytes is longer than the file")
    if length > MAX_FOOTER_BYTES:
        raise _unreadable(f"its footer of {length:,} bytes is above {MAX_FOOTER_BYTES:,}: write larger row groups")
    return tail[-length:] if length <= len(tail) else file.read_at(size - length, length)


def _foreign(file: InputFile) -> ForeignError | None:
    found = by_bytes(file.path, file.read_at(0, HEAD_BYTES))
    return None if found is None else ForeignError(found)


def _unreadable(why: str) -> RowError:
    return RowError(ErrorCode.FILE_UNREADABLE, f"not a readable Parquet file: {why}")


# Functions that run in the sandbox


def handler(setup: dict[str, Any]) -> Any:
    """Make the function that answers `read_footer` in the sandbox."""
    return _answer


def _answer(head: dict[str, Any], body: bytes) -> Replies:
    try:
        yield _facts(head, body)
    except (RowError, MemoryError):
        raise
    except pa.ArrowNotImplementedError as error:
        why = " ".join(str(error).split())
        raise _unreadable(f"a column has a type that is not known here ({why}); write the file without it") from error
    except UnicodeDecodeError as error:
        raise _unreadable("a column's name is not UTF-8") from error
    except Exception as error:  # a file's boundary: a damaged footer makes a library raise anything
        raise _unreadable(" ".join(str(error).split()) or type(error).__name__) from error


def _facts(head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    size, columns = head["size"], head["columns"]
    source = PartialFile(size, [(size - len(body), body)])
    parquet = pq.ParquetFile(pa.PythonFile(source, mode="r"), coerce_int96_timestamp_unit="us", pre_buffer=False)
    metadata, schema = parquet.metadata, parquet.schema_arrow
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    _check_rows(metadata.num_rows, [group.num_rows for group in groups], size)
    wanted = [field for field in schema if field.name in columns]
    # A footer that is longer than its metadata is signed: some column is encrypted.
    if metadata.serialized_size != len(body) - 8 and metadata.num_row_groups:
        _check_readable(parquet, [field.name for field in wanted])
    paths = {metadata.schema.column(index).path: index for index in range(metadata.num_columns)}
    chosen = [at for path, at in paths.items() if path.partition(".")[0] in columns or path in columns]
    row_bytes = 0
    for number, group in enumerate(groups):
        chunks = [group.column(at) for at in chosen]
        for chunk in chunks:
            _check_chunk(chunk, number, size)
        held = sum(chunk.total_uncompressed_size for chunk in chunks)
        row_bytes = max(row_bytes, held // max(1, group.num_rows))
    stats = None if head["prefix"] is None else column_stats(metadata, PrefixColumn(**head["prefix"]), columns)
    facts = {
        "rows": metadata.num_rows,
        "names": schema.names[:LISTED_NAMES],
        "prefix": None if stats is None else asdict(stats),
        "row_bytes": row_bytes,
    }
    return facts, pa.schema(wanted).serialize().to_pybytes()


def _check_rows(rows: int, groups: list[int], size: int) -> None:
    if min([rows, *groups]) < 0 or sum(groups) != rows:
        raise _unreadable(f"its footer says {counted(rows, 'row')}, and {sum(groups):,} in its row groups")
    if rows > max(DENSE_ROWS, ROWS_PER_BYTE * size):
        raise _unreadable(f"its footer says {counted(rows, 'row')} in {counted(size, 'byte')}")


def _check_readable(parquet: pq.ParquetFile, columns: list[str]) -> None:
    for name in columns:
        try:
            next(parquet.iter_batches(batch_size=1, row_groups=[0], columns=[name], use_threads=False), None)
        except (OSError, pa.ArrowException) as error:
            if "crypt" in str(error):  # other errors come from the data, which reads as zeros here
                raise _unreadable(f"the column {name!r} is encrypted; give unencrypted files") from error


def _check_chunk(chunk: pq.ColumnChunkMetaData, group: int, size: int) -> None:
    offsets = [chunk.data_page_offset, chunk.dictionary_page_offset or 0]
    sizes = [chunk.total_compressed_size, chunk.total_uncompressed_size, chunk.num_values]
    begin = min(offset for offset in offsets if offset) if any(offsets) else 0
    if min(*offsets, *sizes) < 0 or begin + chunk.total_compressed_size > size:
        raise _unreadable(f"its footer places column {chunk.path_in_schema!r} of row group {group} outside the file")


def column_stats(metadata: pq.FileMetaData, prefix: PrefixColumn, names: list[str]) -> ColumnStats | None:
    """Statistics of the prefix column; None if the file has no rows or lacks it, or it is made of other columns.

    Args:
        metadata: Parsed footer of the file.
        prefix: Column that prompts start with.
        names: Columns that the job reads.
    """
    if not metadata.num_rows:
        return None
    paths = {metadata.schema.column(index).path: index for index in range(metadata.num_columns)}
    if prefix.column not in paths:
        return None
    at = paths[prefix.column]
    wanted = set(names) - {prefix.column}
    others = [index for path, index in paths.items() if path.partition(".")[0] in wanted or path in wanted]
    repeats, compressed, decompressed, row_bytes = True, 0, 0, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not group.num_rows:
            continue
        chunk = group.column(at)
        repeats = repeats and chunk.has_dictionary_page and (prefix.document or not _short(chunk))
        compressed += chunk.total_compressed_size
        decompressed += chunk.total_uncompressed_size
        held = sum(group.column(index).total_uncompressed_size for index in others)
        row_bytes = max(row_bytes, held // group.num_rows)
    return ColumnStats(repeats, compressed, decompressed // metadata.num_rows, row_bytes)


def _short(chunk: pq.ColumnChunkMetaData) -> bool:
    """Whether all values of a column chunk are short, by their bounds.

    Writers leave the bounds of long values out, or shorten them to SHORT_BYTES or more.
    """
    bounds = chunk.statistics
    if bounds is None or not bounds.has_min_max:
        return False
    least, most = bounds.min_raw, bounds.max_raw
    return not (isinstance(least, bytes) and isinstance(most, bytes)) or max(len(least), len(most)) < SHORT_BYTES
