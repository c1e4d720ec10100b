"""Parquet footers, read where a damaged or hostile one harms nothing else: in a sandbox.

A footer that lies is found before anything is made as large as it says. What a library does not survive (Arrow ends
the process at an encrypted column's metadata) ends a sandbox's process, and is that file's problem alone.
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
from magbatch.errors import ErrorCode, RowError, SandboxError, SandboxMemoryError, SandboxTimeoutError
from magbatch.sandbox import Sandboxes
from magbatch.storage.formats import HEAD_BYTES, Foreign, by_bytes
from magbatch.storage.input_file import InputFile

PROCESSES = 4
TIMEOUT_S = 120.0
MEMORY_MB = 2048
TAIL_BYTES = 64 << 10  # most footers are shorter: one request
MAX_FOOTER_BYTES = 128 << 20
MIN_FILE_BYTES = 12  # its two marks, and the footer's length
DENSE_ROWS = 1 << 20  # that a file of any size may hold: rows that are all alike take next to nothing
ROWS_A_BYTE = 64  # in a larger one
COUNTED_NAMES = 50  # columns of a file that a message names
SHORT_BYTES = 64  # at least so long are even shortened bounds in a footer, where values are long
Replies = Iterator[tuple[dict[str, Any], bytes | None]]


@dataclass(frozen=True, slots=True)
class PrefixColumn:
    """The column that a job's prompts begin with.

    Attributes:
        column: Its name.
        document: Its values stand for documents, which are long whatever their names are.
        forced: The spec names it.
    """

    column: str
    document: bool = False
    forced: bool = False


@dataclass(frozen=True, slots=True)
class ColumnStats:
    """What a file's footer says of the column that prompts begin with.

    Attributes:
        may_repeat: The column's values are kept in dictionaries, and are not seen to be short.
        lead_bytes: Of the column, compressed.
        lead_row_bytes: Of the column, decompressed, a row.
        row_bytes: Of the job's other columns, decompressed, a row: of the row group with the largest.
    """

    may_repeat: bool
    lead_bytes: int
    lead_row_bytes: int
    row_bytes: int


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file's footer says.

    Attributes:
        rows: Rows of the file.
        names: All its columns; those of a very wide file in part.
        schema: Those of its columns that the job reads, a name that it has twice included twice.
        lead: About the column that prompts begin with; None if it is not there, or made of others.
        row_bytes: Of the columns that the job reads, decompressed, a row: of the row group with the largest.
    """

    rows: int
    names: list[str]
    schema: pa.Schema
    lead: ColumnStats | None = None
    row_bytes: int = 0


class Parts(io.BytesIO):
    """A file of which some ranges are at hand; what lies between them reads as zeros.

    Args:
        size: Bytes of the whole file.
        parts: Begin and content of each range.
    """

    def __init__(self, size: int, parts: list[tuple[int, bytes]]) -> None:
        super().__init__()
        self._size, self._parts, self._at = size, parts, 0

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase`."""
        self._at = max(0, {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.IOBase`."""
        length = max(0, self._size - self._at if size is None or size < 0 else min(size, self._size - self._at))
        data = bytearray(length)
        for begin, content in self._parts:
            first, end = max(begin, self._at), min(begin + len(content), self._at + length)
            if first < end:
                data[first - self._at : end - self._at] = memoryview(content)[first - begin : end - begin]
        self._at += length
        return bytes(data)


def read_footer(file: InputFile, columns: list[str], lead: PrefixColumn | None) -> FileFacts:
    """What the footer of an input file says.

    Args:
        file: The file.
        columns: Columns that the job reads.
        lead: The column that its prompts begin with, where that matters.

    Raises:
        RowError: `file_unreadable` or `file_changed`: what is wrong with the file.
        FileNotFoundError: It is gone.
        StorageError: The storage does not answer.
        ClusterError: No sandbox can be started here.
    """
    head = {"size": file.size_bytes, "columns": columns, "lead": asdict(lead) if lead is not None else None}
    try:
        (reply,) = sandboxes()(head, footer_bytes(file))
    except SandboxTimeoutError as error:
        raise _unreadable(f"its footer takes longer than {TIMEOUT_S:g} s") from error
    except SandboxMemoryError as error:
        raise _unreadable(f"its footer needs more than {MEMORY_MB} MB of memory") from error
    except SandboxError as error:
        raise _unreadable(f"its footer breaks the Parquet library: {error}") from error
    schema = pa.ipc.read_schema(pa.py_buffer(reply.body))
    found = reply.head["lead"]
    lead_facts = ColumnStats(**found) if found else None
    return FileFacts(reply.head["rows"], reply.head["names"], schema, lead_facts, reply.head["row_bytes"])


@functools.cache
def sandboxes() -> Sandboxes:
    """Those of this process; one that is idle takes 70 MB."""
    count = min(PROCESSES, os.cpu_count() or 1)
    return Sandboxes(count, "magbatch.plan.footers:handler", {}, timeout_s=TIMEOUT_S, memory_mb=MEMORY_MB)


def footer_bytes(file: InputFile) -> bytes:
    """The end of a Parquet file, its footer included.

    Source: parquet.apache.org/docs/file-format: footer, its length (4 bytes), and the mark PAR1.
    """
    size = file.size_bytes
    if size < MIN_FILE_BYTES:
        raise _foreign(file) or _unreadable(f"{counted(size, 'byte is', 'bytes are')} no Parquet file")
    tail = file.read_at(max(0, size - TAIL_BYTES), TAIL_BYTES)
    if tail[-4:] == b"PARE":
        raise _unreadable("its footer is encrypted; give files that are not")
    if tail[-4:] != b"PAR1":
        raise _foreign(file) or _unreadable("it does not end as a Parquet file does: another format, or cut off")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > size - 4:
        raise _unreadable(f"its footer of {length:,} bytes is longer than the file")
    if length > MAX_FOOTER_BYTES:
        raise _unreadable(f"its footer of {length:,} bytes is above {MAX_FOOTER_BYTES:,}: write larger row groups")
    return tail[-length:] if length <= len(tail) else file.read_at(size - length, length)


class ForeignError(RowError):
    """A file is of another format.

    Attributes:
        foreign: What it is.
    """

    def __init__(self, foreign: Foreign) -> None:
        super().__init__(ErrorCode.FILE_UNREADABLE, f"not a readable Parquet file: it is {foreign.what}")
        self.foreign = foreign


def _foreign(file: InputFile) -> ForeignError | None:
    found = by_bytes(file.path, file.read_at(0, HEAD_BYTES))
    return None if found is None else ForeignError(found)


def _unreadable(why: str) -> RowError:
    return RowError(ErrorCode.FILE_UNREADABLE, f"not a readable Parquet file: {why}")


# In the sandbox


def handler(setup: dict[str, Any]) -> Any:
    """The sandbox's side of `read_footer`."""
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
    source = Parts(size, [(size - len(body), body)])
    parquet = pq.ParquetFile(pa.PythonFile(source, mode="r"), coerce_int96_timestamp_unit="us", pre_buffer=False)
    metadata, schema = parquet.metadata, parquet.schema_arrow
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    _check_rows(metadata.num_rows, [group.num_rows for group in groups], size)
    wanted = [one for one in schema if one.name in columns]
    if metadata.serialized_size != len(body) - 8 and metadata.num_row_groups:  # a signature: some column is encrypted
        _check_readable(parquet, [one.name for one in wanted])
    paths = {metadata.schema.column(index).path: index for index in range(metadata.num_columns)}
    chosen = [at for path, at in paths.items() if path.partition(".")[0] in columns or path in columns]
    row_bytes = 0
    for number, group in enumerate(groups):
        chunks = [group.column(at) for at in chosen]
        for chunk in chunks:
            _check_chunk(chunk, number, size)
        held = sum(chunk.total_uncompressed_size for chunk in chunks)
        row_bytes = max(row_bytes, held // max(1, group.num_rows))
    lead = None if head["lead"] is None else footer_of(metadata, PrefixColumn(**head["lead"]), columns)
    names = schema.names[:COUNTED_NAMES]
    facts = {"rows": metadata.num_rows, "names": names, "lead": None if lead is None else asdict(lead)}
    facts["row_bytes"] = row_bytes
    return facts, pa.schema(wanted).serialize().to_pybytes()


def _check_rows(rows: int, groups: list[int], size: int) -> None:
    if min([rows, *groups]) < 0 or sum(groups) != rows:
        raise _unreadable(f"its footer says {counted(rows, 'row')}, and {sum(groups):,} in its row groups")
    if rows > max(DENSE_ROWS, ROWS_A_BYTE * size):
        raise _unreadable(f"its footer says {counted(rows, 'row')} in {counted(size, 'byte')}")


def _check_readable(parquet: pq.ParquetFile, columns: list[str]) -> None:
    for name in columns:
        try:
            next(parquet.iter_batches(batch_size=1, row_groups=[0], columns=[name], use_threads=False), None)
        except (OSError, pa.ArrowException) as error:
            if "crypt" in str(error):  # anything else: of the data, which is not at hand here
                raise _unreadable(f"the column {name!r} is encrypted; give files that are not") from error


def _check_chunk(chunk: pq.ColumnChunkMetaData, group: int, size: int) -> None:
    places = [chunk.data_page_offset, chunk.dictionary_page_offset or 0]
    sizes = [chunk.total_compressed_size, chunk.total_uncompressed_size, chunk.num_values]
    begin = min(place for place in places if place) if any(places) else 0
    if min(*places, *sizes) < 0 or begin + chunk.total_compressed_size > size:
        raise _unreadable(f"its footer places column {chunk.path_in_schema!r} of row group {group} outside the file")


def footer_of(metadata: pq.FileMetaData, lead: PrefixColumn, names: list[str]) -> ColumnStats | None:
    """What a footer says of a column; None where the column is not there, or is made of others.

    Args:
        metadata: The footer.
        lead: The column.
        names: The columns that the job reads.
    """
    if not metadata.num_rows:
        return None
    paths = {metadata.schema.column(index).path: index for index in range(metadata.num_columns)}
    if lead.column not in paths:
        return None
    at = paths[lead.column]
    wanted = set(names) - {lead.column}
    others = [index for path, index in paths.items() if path.partition(".")[0] in wanted or path in wanted]
    repeats, lead_bytes, size, row_bytes = True, 0, 0, 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if not group.num_rows:
            continue
        chunk = group.column(at)
        repeats = repeats and chunk.has_dictionary_page and (lead.document or not _short(chunk))
        lead_bytes, size = lead_bytes + chunk.total_compressed_size, size + chunk.total_uncompressed_size
        held = sum(group.column(index).total_uncompressed_size for index in others)
        row_bytes = max(row_bytes, held // group.num_rows)
    return ColumnStats(repeats, lead_bytes, size // metadata.num_rows, row_bytes)


def _short(chunk: pq.ColumnChunkMetaData) -> bool:
    """Whether the bounds of a column's values are short; long ones are left out or shortened, not to nothing."""
    bounds = chunk.statistics
    if bounds is None or not bounds.has_min_max:
        return False
    least, most = bounds.min_raw, bounds.max_raw
    return not isinstance(least, bytes) or max(len(least), len(most)) < SHORT_BYTES
