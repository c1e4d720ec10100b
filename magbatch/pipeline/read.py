"""Shard -> input rows.

Every row of a shard comes out once: as a row of the table, or as a failure that says why it could
not be read. Only the columns that the job uses are read, and a file is read forward once however
many shards of it a task holds, and however their rows stand between each other's.

A file that is damaged, gone or changed fails its rows; a value that is not what its column says
fails its row. No row leaves before its file was seen to be the planned one after it was read. A storage
that does not answer raises, so that Ray tries again: that is no property of the rows.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from operator import attrgetter

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.errors import ErrorCode, JobError, RowError
from magbatch.rows import Segment, Shard
from magbatch.storage.columns import converted, empty_table
from magbatch.storage.input_file import open_input
from magbatch.storage.parquet import open_parquet
from magbatch.storage.partitions import is_from_path, with_keys
from magbatch.storage.sizes import SHARD_BYTES, Dictionaries, RowSizes, Run, cut

READ_BATCH_ROWS = 64
READ_BATCH_BYTES = 64 << 20  # rows of documents have many megabytes each
_NO_DAMAGE = (RowError, JobError, FileNotFoundError)  # of the file as such; whatever else is raised is its content's


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
    """A forward reader of one file.

    Args:
        segment: Of the file, as it was planned.
        columns: Input columns to read.

    Raises:
        RowError: It is no longer the file that was planned, or cannot be opened.
        FileNotFoundError: It is gone.
        StorageError: The storage does not answer.
    """

    def __init__(self, segment: Segment, columns: list[str]) -> None:
        self.path = segment.path
        self._source = open_input(segment.path, segment.size, segment.tag, segment.digest)
        self.digest = self._source.digest
        self._file = open_parquet(self._source)
        self._columns = columns
        metadata = self._file.metadata

        def with_dictionaries(paths: list[str]) -> pq.ParquetFile:
            return open_parquet(self._source, read_dictionary=paths, metadata=metadata)

        self._sizes = RowSizes(Dictionaries(with_dictionaries, _NO_DAMAGE), metadata, columns)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._position = self._file.metadata.num_rows  # of the next row; past the end forces a seek

    def take(self, start: int, rows: int, batch_rows: int = READ_BATCH_ROWS) -> list[pa.RecordBatch]:
        """The rows [start, start + rows); raises as the cursor itself, and anything for damage."""
        taken = self._take(start, rows, batch_rows)
        self._source.check()
        return taken

    def _take(self, start: int, rows: int, batch_rows: int) -> list[pa.RecordBatch]:
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

    def group_end(self, row: int) -> int:
        """The first row after the row group of a row."""
        return next(end for end in self._sizes.ends if end > row)

    def sizes(self, start: int, rows: int, room: int) -> Iterator[Run]:
        """Sizes of the rows [start, start + rows); raises as `take`."""
        for group, found in self._sizes.groups(start, rows):
            each = self._sizes.row_bytes(group, rows, room)
            if each * rows > room and self._sizes.has_prefixes(group):
                for row in range(start, start + found):
                    yield 1, max(1, sum(batch.nbytes for batch in self._take(row, 1, READ_BATCH_ROWS)))
            else:
                yield found, each
            start += found

    def _seek(self, start: int, batch_rows: int) -> None:
        metadata = self._file.metadata
        group, first = 0, 0
        while first + metadata.row_group(group).num_rows <= start:
            first += metadata.row_group(group).num_rows
            group += 1
        if first <= self._position <= start:
            return
        self._batches = self._stream(group, batch_rows)
        self._rest, self._position = None, first

    def _stream(self, group: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows of a row group and of those after it; few at once where they are large."""
        for number in range(group, self._file.metadata.num_row_groups):
            each = self._sizes.row_bytes(number, batch_rows, READ_BATCH_BYTES) if batch_rows > 1 else READ_BATCH_BYTES
            yield from self._file.iter_batches(
                batch_size=max(1, min(batch_rows, READ_BATCH_BYTES // each)), row_groups=[number], columns=self._columns
            )


def read_together(shards: list[Shard]) -> Iterator[list[Shard]]:
    """Neighbouring shards whose rows stand between each other's in the files; most shards are alone.

    Args:
        shards: In the order of the plan, whose files are in the order of their paths.
    """
    begins = [min((segment.path, segment.start) for segment in shard.segments) for shard in shards]
    ends = [max((segment.path, segment.start + segment.rows) for segment in shard.segments) for shard in shards]
    highest = list(accumulate(ends, max))
    lowest = list(accumulate(reversed(begins), min))[::-1]
    cuts = [at for at in range(1, len(shards)) if highest[at - 1] <= lowest[at]]
    for begin, end in pairwise([0, *cuts, len(shards)] if shards else []):
        yield shards[begin:end]


class ShardReader:
    """Reads shards, in the order of the plan, for one task.

    Args:
        columns: Input columns that the job uses, with the types that the plan froze.
        batch_rows: Rows that are decoded at once.
    """

    def __init__(self, columns: pa.Schema, batch_rows: int = READ_BATCH_ROWS) -> None:
        self._columns = columns
        self._of_path = [one for one in columns if is_from_path(one)]
        self._batch_rows = batch_rows
        self._cursor: _Cursor | None = None
        self._seen: tuple[str, str | None] = "", None  # file and fingerprint: a plan of an older version has none
        self._ahead: dict[tuple[str, int], tuple[list[pa.RecordBatch], RowError | None]] = {}

    def pieces(self, shards: list[Shard]) -> tuple[list[list[Shard]], bool]:
        """What of each shard is read at once, and whether all of these shards can be.

        Raises:
            StorageError: The storage does not answer.
        """
        segments = sorted((segment for shard in shards for segment in shard.segments), key=attrgetter("path", "start"))
        sizes = {_place(segment): self._sizes(segment) for segment in segments}
        total = sum(rows * each for runs in sizes.values() for rows, each in runs)
        return [cut(shard, sizes) for shard in shards], total <= 2 * SHARD_BYTES

    def _sizes(self, segment: Segment) -> list[Run]:
        if segment.problem is None and self._columns.names:
            try:
                return list(self._open(segment).sizes(segment.start, segment.rows, SHARD_BYTES))
            except JobError:
                raise
            except Exception:  # noqa: BLE001 - a file's boundary: what is wrong with it is found when it is read
                self._cursor = None
        return [(segment.rows, 1)]

    def read_ahead(self, shards: list[Shard]) -> None:
        """Read what these shards hold in one pass, and keep it until the next call, where their rows are mixed.

        Raises:
            StorageError: The storage does not answer.
        """
        self._ahead = {}
        segments = [segment for shard in shards for segment in shard.segments if segment.problem is None]
        order = sorted(segments, key=attrgetter("path", "start"))
        if order == segments or not self._columns.names:  # each is read when its turn comes, and none is kept
            return
        for _, of_file in groupby(order, key=attrgetter("path")):
            self._read_file(list(of_file))

    def _read_file(self, segments: list[Segment]) -> None:
        """Keep what segments of one file hold, in their order there, or what is wrong with them."""
        try:
            try:
                for segment in segments:
                    batches = self._open(segment).take(segment.start, segment.rows)
                    # Copies: a slice would keep its whole batch.
                    self._ahead[_place(segment)] = [batch.take(_all(batch)) for batch in batches], None
            except _NO_DAMAGE:
                raise
            except Exception:  # noqa: BLE001 - a file's boundary: damaged bytes make a library raise anything
                self._cursor = None
                self._past_the_damage([segment for segment in segments if _place(segment) not in self._ahead])
        except (RowError, FileNotFoundError) as error:
            self._cursor = None
            wrong = error if isinstance(error, RowError) else _gone(segments[0])
            self._ahead |= {_place(segment): ([], wrong) for segment in segments if _place(segment) not in self._ahead}

    def _past_the_damage(self, segments: list[Segment]) -> None:
        """Row by row, in one pass: damage takes the rest of its row group along, as if each row were read alone."""
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
                except _NO_DAMAGE:
                    raise
                except Exception as error:  # noqa: BLE001 - a file's boundary, as above
                    damage = _unreadable(segment, row - segment.start, error)
                    lost, cursor = cursor.group_end(row) if cursor is not None else sys.maxsize, None
                    break
            self._ahead[_place(segment)] = batches, damage

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
        """The readable rows of a segment, and by their offset in it what is wrong with the others."""
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
        if (ahead := self._ahead.get(_place(segment))) is not None:
            batches, damage = ahead
        else:
            try:
                batches = self._open(segment).take(segment.start, segment.rows, self._batch_rows)
            except _NO_DAMAGE:
                raise
            except Exception:  # noqa: BLE001 - a file's boundary: damaged bytes make a library raise anything
                batches, damage = self._up_to_the_damage(segment)
        table, failures = self._table(segment, batches)
        if damage is not None:
            failures |= dict.fromkeys(range(sum(batch.num_rows for batch in batches), segment.rows), damage)
        return table, failures

    def _up_to_the_damage(self, segment: Segment) -> tuple[list[pa.RecordBatch], RowError | None]:
        """Row by row: a damaged page does not take the rows before it along."""
        self._cursor = None
        batches: list[pa.RecordBatch] = []
        try:
            cursor = self._new(segment)
            for offset in range(segment.rows):
                batches += cursor.take(segment.start + offset, 1, batch_rows=1)
        except _NO_DAMAGE:
            raise
        except Exception as error:  # noqa: BLE001 - a file's boundary, as above
            return batches, _unreadable(segment, len(batches), error)
        return batches, None

    def _open(self, segment: Segment) -> _Cursor:
        if self._cursor is None or self._cursor.path != segment.path:
            self._cursor = None
            self._cursor = self._new(segment)
        return self._cursor

    def _new(self, segment: Segment) -> _Cursor:
        if segment.digest is None and self._seen[0] == segment.path:
            segment = replace(segment, digest=self._seen[1])
        cursor = _Cursor(segment, self._columns.names)
        self._seen = segment.path, cursor.digest
        return cursor

    def _table(self, segment: Segment, batches: list[pa.RecordBatch]) -> tuple[pa.Table, dict[int, RowError]]:
        """One table in the planned types: files may differ in large_string, dictionary and the like."""
        if not batches:
            return empty_table(self._columns), {}
        try:
            return self._as_planned(segment, batches), {}
        except RowError:  # a value that is not UTF-8, or that the planned type cannot hold: find its row
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


def _place(segment: Segment) -> tuple[str, int]:
    return segment.path, segment.start


def _one(batch: pa.RecordBatch, index: int) -> pa.RecordBatch:
    """One row. A copy: a slice of a struct has all values of its fields still, and one bad value fails each slice."""
    try:
        return batch.take(pa.array([index], pa.int64()))
    except pa.ArrowNotImplementedError:  # of a type that cannot be copied so
        return batch.slice(index, 1)


def _chosen(table: pa.Table, keep: list[bool]) -> pa.Table:
    """Some rows, batch by batch: Arrow joins a column before it takes of it, and an array of text ends at 2 GB."""
    chosen, start = [], 0
    for batch in table.to_batches():
        chosen.append(batch.filter(pa.array(keep[start : start + batch.num_rows], pa.bool_())))
        start += batch.num_rows
    return pa.Table.from_batches(chosen, table.schema) if table.num_columns else table.slice(0, sum(keep))


def _gone(segment: Segment) -> RowError:
    return RowError(ErrorCode.FILE_UNREADABLE, f"{segment.path} was there when the job was planned and is gone")


def _all(batch: pa.RecordBatch) -> pa.Array:
    return pa.array(range(batch.num_rows), pa.int32())


def _unreadable(segment: Segment, offset: int, error: Exception) -> RowError:
    why = str(error) or ("the file ends early" if isinstance(error, StopIteration) else type(error).__name__)
    return RowError(ErrorCode.ROW_UNREADABLE, f"{segment.path}: damaged at row {segment.start + offset}: {why}")
