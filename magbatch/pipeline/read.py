"""Shard -> input rows.

Every row of a shard comes out once: as a row of the table, or as a failure that says why it could
not be read. Only the columns that the job uses are read, and a file is read forward once however
many shards of it a task holds.

A file that is damaged, gone or changed fails its rows. A storage that does not answer raises, so
that Ray tries again: that is no property of the rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.errors import ErrorCode, RowError
from magbatch.rows import Segment, Shard
from magbatch.storage import input_filesystem, stat_input

READ_BATCH_ROWS = 64
READ_BUFFER_BYTES = 1 << 20  # a column chunk is streamed, not loaded: row groups can be gigabytes


@dataclass(slots=True)
class ShardRows:
    """A shard as read.

    Attributes:
        row_ids: Ids of the readable rows, in order.
        folders: For each of them the folder of its file.
        table: Their columns, one row for each id; null cells stay null.
        failed: The rows that could not be read.
    """

    row_ids: list[str]
    folders: list[str]
    table: pa.Table
    failed: list[tuple[str, RowError]]


class _Cursor:
    """A forward reader of one file."""

    def __init__(self, segment: Segment, columns: list[str]) -> None:
        now = stat_input(segment.path)
        if (now.size, now.tag) != (segment.size, segment.tag):
            raise RowError(
                ErrorCode.FILE_CHANGED,
                f"{segment.path} is not the file that was planned ({segment.size} bytes then, {now.size} now); "
                "run the changed input into a new output",
            )
        filesystem, inner = input_filesystem(segment.path)
        self.path = segment.path
        self._file = pq.ParquetFile(filesystem.open_input_file(inner), buffer_size=READ_BUFFER_BYTES, pre_buffer=False)
        self._columns = columns
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._position = self._file.metadata.num_rows  # of the next row; past the end forces a seek

    def take(self, start: int, rows: int, batch_rows: int = READ_BATCH_ROWS) -> list[pa.RecordBatch]:
        """The rows [start, start + rows)."""
        self._seek(start, batch_rows)
        taken: list[pa.RecordBatch] = []
        while rows:
            batch = self._rest if self._rest is not None else next(self._batches)
            self._rest = None
            skip = start - self._position
            if skip >= batch.num_rows:
                self._position += batch.num_rows
                continue
            part = batch.slice(skip, rows)
            taken.append(part)
            used = skip + part.num_rows
            self._position += used
            start += part.num_rows
            rows -= part.num_rows
            if used < batch.num_rows:
                self._rest = batch.slice(used)
        return taken

    def _seek(self, start: int, batch_rows: int) -> None:
        metadata = self._file.metadata
        group, first = 0, 0
        while first + metadata.row_group(group).num_rows <= start:
            first += metadata.row_group(group).num_rows
            group += 1
        if first <= self._position <= start:
            return
        self._batches = self._file.iter_batches(
            batch_size=batch_rows, row_groups=list(range(group, metadata.num_row_groups)), columns=self._columns
        )
        self._rest, self._position = None, first


class ShardReader:
    """Reads shards, in the order of the plan, for one task.

    Args:
        columns: Input columns that the job uses, with the types that the plan froze.
    """

    def __init__(self, columns: pa.Schema) -> None:
        self._columns = columns
        self._cursor: _Cursor | None = None

    def __call__(self, shard: Shard, done: frozenset[str] = frozenset()) -> ShardRows:
        """Read the rows of a shard that are not done.

        Raises:
            StorageError: The storage does not answer.
        """
        ids: list[str] = []
        folders: list[str] = []
        tables: list[pa.Table] = []
        failed: list[tuple[str, RowError]] = []
        for segment in shard.segments:
            row_ids = segment.row_ids()
            if all(row_id in done for row_id in row_ids):
                continue
            table, problem = self._segment(segment)
            keep = [index for index, row_id in enumerate(row_ids[: table.num_rows]) if row_id not in done]
            tables.append(table if len(keep) == table.num_rows else table.take(keep))
            ids += [row_ids[index] for index in keep]
            folders += [segment.path.rpartition("/")[0]] * len(keep)
            if problem is not None:
                failed += [(row_id, problem) for row_id in row_ids[table.num_rows :] if row_id not in done]
        table = pa.concat_tables(tables) if tables else self._columns.empty_table()
        return ShardRows(ids, folders, table, failed)

    def _segment(self, segment: Segment) -> tuple[pa.Table, RowError | None]:
        """The readable rows at the beginning of a segment, and what is wrong with the others."""
        if segment.problem is not None:
            code = segment.code or ErrorCode.FILE_UNREADABLE
            return self._columns.empty_table(), RowError(code, segment.problem)
        try:
            return self._table(self._open(segment).take(segment.start, segment.rows)), None
        except RowError as error:
            return self._columns.empty_table(), error
        except FileNotFoundError:
            gone = RowError(ErrorCode.FILE_UNREADABLE, f"{segment.path} was there when the job was planned and is gone")
            return self._columns.empty_table(), gone
        except (OSError, pa.ArrowException, StopIteration):
            stat_input(segment.path)  # raises when it is the storage that fails, not the file
            return self._what_is_readable(segment)

    def _what_is_readable(self, segment: Segment) -> tuple[pa.Table, RowError | None]:
        """Row by row up to the damage: a damaged page does not take the rows before it along."""
        self._cursor = None
        batches: list[pa.RecordBatch] = []
        try:
            cursor = self._open(segment)
            for offset in range(segment.rows):
                batches += cursor.take(segment.start + offset, 1, batch_rows=1)
        except (OSError, pa.ArrowException, StopIteration) as error:
            self._cursor = None
            message = f"{segment.path}: damaged at row {segment.start + len(batches)}: {error or 'the file ends early'}"
            return self._table(batches), RowError(ErrorCode.ROW_UNREADABLE, " ".join(message.split()))
        return self._table(batches), None

    def _open(self, segment: Segment) -> _Cursor:
        if self._cursor is None or self._cursor.path != segment.path:
            self._cursor = None
            self._cursor = _Cursor(segment, self._columns.names)
        return self._cursor

    def _table(self, batches: list[pa.RecordBatch]) -> pa.Table:
        """One table in the planned types: files may differ in large_string, dictionary and the like."""
        if not batches:
            return self._columns.empty_table()
        return pa.Table.from_batches(batches).select(self._columns.names).cast(self._columns)
