"""Shard -> input rows.

Every row of a shard comes out once: as a row of the table, or as a failure with its reason. Only the columns that the
job uses are read. A task reads each file forward once, even if the rows of its shards are mixed in the file.

A file that is damaged, gone or changed fails its rows. A value that does not fit the type of its column fails its row.
Rows are handed out only after a check, made after the read, that the file is the planned one. If the storage does not
answer, the read raises, so that Ray tries again: the rows are not at fault.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from operator import attrgetter

import pyarrow as pa

from magbatch.arrow_types import Array
from magbatch.errors import ErrorCode, JobError, RowError
from magbatch.pipeline.cursor import NO_DAMAGE, READ_BATCH_ROWS, Cursor
from magbatch.rows import Segment, Shard
from magbatch.storage.columns import converted, empty_table
from magbatch.storage.partitions import is_from_path, with_keys
from magbatch.storage.sizes import SHARD_BYTES, Run, cut


@dataclass(slots=True)
class ShardRows:
    """A shard as read.

    Attributes:
        row_ids: Ids of the readable rows, in order.
        folders: Folder of the file of each readable row.
        table: Columns of the readable rows, a row for each id; null cells stay null.
        failed: Id and error of each row that could not be read.
    """

    row_ids: list[str]
    folders: list[str]
    table: pa.Table
    failed: list[tuple[str, RowError]]


def read_together(shards: list[Shard]) -> Iterator[list[Shard]]:
    """Groups of neighbouring shards whose rows are mixed in the files; most groups are a single shard.

    Args:
        shards: Shards in the order of the plan, whose files are in the order of their paths.
    """
    begins = [min((segment.path, segment.start) for segment in shard.segments) for shard in shards]
    ends = [max((segment.path, segment.start + segment.rows) for segment in shard.segments) for shard in shards]
    highest = list(accumulate(ends, max))
    lowest = list(accumulate(reversed(begins), min))[::-1]
    cuts = [at for at in range(1, len(shards)) if highest[at - 1] <= lowest[at]]
    for begin, end in pairwise([0, *cuts, len(shards)] if shards else []):
        yield shards[begin:end]


class ShardReader:
    """Reads the shards of one task, in the order of the plan.

    Args:
        columns: Schema of the input columns that the job uses, with the types that the plan froze.
        batch_rows: Rows that are decoded at once.
    """

    def __init__(self, columns: pa.Schema, batch_rows: int = READ_BATCH_ROWS) -> None:
        self._columns = columns
        self._of_path = [one for one in columns if is_from_path(one)]
        self._batch_rows = batch_rows
        self._cursor: Cursor | None = None
        self._seen: tuple[str, str | None] = "", None  # last file and its fingerprint, for older plans that have none
        self._ahead: dict[tuple[str, int], tuple[list[pa.RecordBatch], RowError | None]] = {}

    def pieces(self, shards: list[Shard]) -> tuple[list[list[Shard]], bool]:
        """Cut shards into pieces that fit memory.

        Returns:
            The pieces of each shard, and whether all these shards together are small enough to be read at once.

        Raises:
            StorageError: The storage does not answer.
        """
        segments = sorted((segment for shard in shards for segment in shard.segments), key=attrgetter("path", "start"))
        sizes = {_key(segment): self._sizes(segment) for segment in segments}
        total = sum(rows * each for runs in sizes.values() for rows, each in runs)
        return [cut(shard, sizes) for shard in shards], total <= 2 * SHARD_BYTES

    def _sizes(self, segment: Segment) -> list[Run]:
        if segment.problem is None and self._columns.names:
            try:
                return list(self._open(segment).sizes(segment.start, segment.rows, SHARD_BYTES))
            except JobError:
                raise
            except Exception:  # noqa: BLE001 - a file's boundary: the read will find the damage
                self._cursor = None
        return [(segment.rows, 1)]

    def read_ahead(self, shards: list[Shard]) -> None:
        """Read the rows of shards in one pass if they are mixed in the files, and keep them until the next call.

        Raises:
            StorageError: The storage does not answer.
        """
        self._ahead = {}
        segments = [segment for shard in shards for segment in shard.segments if segment.problem is None]
        order = sorted(segments, key=attrgetter("path", "start"))
        if order == segments or not self._columns.names:  # not mixed: each segment is read when its turn comes
            return
        for _, of_file in groupby(order, key=attrgetter("path")):
            self._read_file(list(of_file))

    def _read_file(self, segments: list[Segment]) -> None:
        """Read and keep the rows of some segments of a file, in the order of the file, or the error of each segment."""
        try:
            try:
                for segment in segments:
                    batches = self._open(segment).take(segment.start, segment.rows)
                    # `take` copies: a slice would keep its whole batch in memory.
                    self._ahead[_key(segment)] = [batch.take(_all(batch)) for batch in batches], None
            except NO_DAMAGE:
                raise
            except Exception:  # noqa: BLE001 - a file's boundary: damaged bytes make a library raise anything
                self._cursor = None
                self._past_the_damage([segment for segment in segments if _key(segment) not in self._ahead])
        except (RowError, FileNotFoundError) as error:
            self._cursor = None
            wrong = error if isinstance(error, RowError) else _gone(segments[0])
            self._ahead |= {_key(segment): ([], wrong) for segment in segments if _key(segment) not in self._ahead}

    def _past_the_damage(self, segments: list[Segment]) -> None:
        """Read row by row, in one pass. Damage costs the rest of its row group, as if each row were read alone."""
        lost, damage, cursor = 0, None, None
        for segment in segments:
            batches: list[pa.RecordBatch] = []
            for row in range(segment.start, segment.start + segment.rows):
                if row < lost:
                    break
                damage = None
                try:
                    cursor = cursor or self._new(segment)
                    batches += cursor.take(row, 1, batch_rows=1)
                except NO_DAMAGE:
                    raise
                except Exception as error:  # noqa: BLE001 - a file's boundary, as above
                    damage = _unreadable(segment, row - segment.start, error)
                    lost, cursor = cursor.group_end(row) if cursor is not None else sys.maxsize, None
                    break
            self._ahead[_key(segment)] = batches, damage

    def __call__(self, shard: Shard, done: frozenset[str] = frozenset()) -> ShardRows:
        """Read a shard.

        Args:
            shard: Shard as it was planned.
            done: Ids of its committed rows, which are left out.

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
            table, failures = self._segment(segment)
            readable = [row_id for offset, row_id in enumerate(row_ids) if offset not in failures]
            keep = [row_id not in done for row_id in readable]
            tables.append(table if all(keep) else _chosen(table, keep))
            ids += [row_id for row_id, kept in zip(readable, keep, strict=True) if kept]
            folders += [segment.path.rpartition("/")[0]] * sum(keep)
            failed += [(row_ids[offset], error) for offset, error in failures.items() if row_ids[offset] not in done]
        table = pa.concat_tables(tables) if tables else empty_table(self._columns)
        return ShardRows(ids, folders, table, failed)

    def _segment(self, segment: Segment) -> tuple[pa.Table, dict[int, RowError]]:
        """The readable rows of a segment, and offset to error for its other rows."""
        try:
            if segment.problem is not None:
                raise RowError(segment.code or ErrorCode.FILE_UNREADABLE, segment.problem)
            return self._batches(segment)
        except RowError as error:
            whole, self._cursor = error, None
        except FileNotFoundError:
            whole, self._cursor = _gone(segment), None
        return empty_table(self._columns), dict.fromkeys(range(segment.rows), whole)

    def _batches(self, segment: Segment) -> tuple[pa.Table, dict[int, RowError]]:
        damage: RowError | None = None
        if (ahead := self._ahead.get(_key(segment))) is not None:
            batches, damage = ahead
        else:
            try:
                batches = self._open(segment).take(segment.start, segment.rows, self._batch_rows)
            except NO_DAMAGE:
                raise
            except Exception:  # noqa: BLE001 - a file's boundary: damaged bytes make a library raise anything
                batches, damage = self._up_to_the_damage(segment)
        table, failures = self._table(segment, batches)
        if damage is not None:
            failures |= dict.fromkeys(range(sum(batch.num_rows for batch in batches), segment.rows), damage)
        return table, failures

    def _up_to_the_damage(self, segment: Segment) -> tuple[list[pa.RecordBatch], RowError | None]:
        """Read row by row up to the damage: the rows before it are saved.

        Returns:
            Record batches of the rows before the damage, and the error of the damage.
        """
        self._cursor = None
        batches: list[pa.RecordBatch] = []
        try:
            cursor = self._new(segment)
            for offset in range(segment.rows):
                batches += cursor.take(segment.start + offset, 1, batch_rows=1)
        except NO_DAMAGE:
            raise
        except Exception as error:  # noqa: BLE001 - a file's boundary, as above
            return batches, _unreadable(segment, len(batches), error)
        return batches, None

    def _open(self, segment: Segment) -> Cursor:
        if self._cursor is None or self._cursor.path != segment.path:
            self._cursor = None
            self._cursor = self._new(segment)
        return self._cursor

    def _new(self, segment: Segment) -> Cursor:
        if segment.digest is None and self._seen[0] == segment.path:
            segment = replace(segment, digest=self._seen[1])
        cursor = Cursor(segment, self._columns.names)
        self._seen = segment.path, cursor.digest
        return cursor

    def _table(self, segment: Segment, batches: list[pa.RecordBatch]) -> tuple[pa.Table, dict[int, RowError]]:
        """Rows in the planned types, since files may differ in large_string and the like; and offset to failure."""
        if not batches:
            return empty_table(self._columns), {}
        try:
            return self._as_planned(segment, batches), {}
        except RowError:  # a value that is not UTF-8 or does not fit the planned type: find its row
            tables: list[pa.Table] = []
            failures: dict[int, RowError] = {}
            rows = (_one(batch, index) for batch in batches for index in range(batch.num_rows))
            for offset, row in enumerate(rows):
                try:
                    tables.append(self._as_planned(segment, [row], segment.start + offset))
                except RowError as error:
                    failures[offset] = RowError(error.code, f"{segment.path}: {error.message}")
            return pa.concat_tables([empty_table(self._columns), *tables]), failures

    def _as_planned(self, segment: Segment, batches: list[pa.RecordBatch], row: int = 0) -> pa.Table:
        table = pa.Table.from_batches(batches)
        if self._of_path:
            table = with_keys(table, self._of_path, segment.path)
        return converted(table, self._columns, row)


def _key(segment: Segment) -> tuple[str, int]:
    return segment.path, segment.start


def _one(batch: pa.RecordBatch, index: int) -> pa.RecordBatch:
    """A copy of one row. A slice of a struct still holds all values, so one bad value would fail every slice."""
    try:
        return batch.take(pa.array([index], pa.int64()))
    except pa.ArrowNotImplementedError:  # a type for which Arrow has no `take`
        return batch.slice(index, 1)


def _chosen(table: pa.Table, keep: list[bool]) -> pa.Table:
    """The rows to keep, batch by batch: a `take` would join each column first, and an array of text ends at 2 GB."""
    chosen, start = [], 0
    for batch in table.to_batches():
        chosen.append(batch.filter(pa.array(keep[start : start + batch.num_rows], pa.bool_())))
        start += batch.num_rows
    return pa.Table.from_batches(chosen, table.schema) if table.num_columns else table.slice(0, sum(keep))


def _gone(segment: Segment) -> RowError:
    return RowError(
        ErrorCode.FILE_UNREADABLE, f"{segment.path}: the file is gone; it was there when the job was planned"
    )


def _all(batch: pa.RecordBatch) -> Array:
    return pa.array(range(batch.num_rows), pa.int32())


def _unreadable(segment: Segment, offset: int, error: Exception) -> RowError:
    why = str(error) or ("the file ends early" if isinstance(error, StopIteration) else type(error).__name__)
    return RowError(ErrorCode.ROW_UNREADABLE, f"{segment.path}: damaged at row {segment.start + offset}: {why}")
