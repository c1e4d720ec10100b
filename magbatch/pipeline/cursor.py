"""A forward reader of one input file."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.errors import JobError, RowError
from magbatch.rows import Segment
from magbatch.storage.input_file import open_input
from magbatch.storage.parquet import open_parquet
from magbatch.storage.sizes import Dictionaries, RowSizes, Run

READ_BATCH_ROWS = 64
READ_BATCH_BYTES = 64 << 20  # a batch has fewer rows if they are large: a document may have many megabytes
# Errors of the file as a whole. Any other error means that the content is damaged.
NO_DAMAGE = (RowError, JobError, FileNotFoundError)


class Cursor:
    """A forward reader of one file, which makes sure that the file is still the planned one.

    Args:
        segment: A segment of the file, as it was planned.
        columns: Names of the input columns to read.

    Attributes:
        path: Path of the file.
        digest: Fingerprint of a file on a disk, else None.

    Raises:
        RowError: The file is not the planned one any more, or cannot be opened.
        FileNotFoundError: The file is gone.
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

        self._sizes = RowSizes(Dictionaries(with_dictionaries, NO_DAMAGE), metadata, columns)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rest: pa.RecordBatch | None = None
        self._position = self._file.metadata.num_rows  # next row that is decoded; the end of the file forces a seek

    def take(self, start: int, rows: int, batch_rows: int = READ_BATCH_ROWS) -> list[pa.RecordBatch]:
        """Read rows, and make sure afterwards that the file is still the planned one.

        The cursor decodes forward in batches and keeps the rest of a batch for the next call. It seeks only if the rows
        lie before its position, or in a later row group.

        Example: a file with one row group of 200 rows, in batches of 64.

        1. `take(10, 20)` decodes rows 0 to 63, skips 10 rows and returns rows 10 to 29. Rows 30 to 63 are kept.
        2. `take(60, 10)` returns rows 60 to 63 from the kept ones, then decodes 64 to 127 and returns 64 to 69.
        3. `take(0, 5)` lies before row 70: the cursor seeks to the start of the row group and decodes 0 to 63 again.

        Args:
            start: Position of the first row in the file.
            rows: Number of rows.
            batch_rows: Rows that are decoded at once.

        Returns:
            Record batches that hold these rows in order.

        Raises:
            RowError: The file has changed.
            StorageError: The storage does not answer.
            Exception: Anything else means that the content is damaged.
        """
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
            wanted = batch.slice(skip, rows)
            taken.append(wanted)
            used = skip + wanted.num_rows
            self._position += used
            start += wanted.num_rows
            rows -= wanted.num_rows
            if used < batch.num_rows:
                self._rest = batch.slice(used)
        return taken

    def group_end(self, row: int) -> int:
        """Position of the first row after the row group that holds a row."""
        return next(end for end in self._sizes.ends if end > row)

    def sizes(self, start: int, rows: int, room: int) -> Iterator[Run]:
        """Sizes of rows in memory; raises as `take` does.

        Args:
            start: Position of the first row in the file.
            rows: Number of rows.
            room: Bytes below which an estimate is good enough.
        """
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
        """The rows of a row group and of the row groups after it; fewer at once if they are large."""
        for number in range(group, self._file.metadata.num_row_groups):
            each = self._sizes.row_bytes(number, batch_rows, READ_BATCH_BYTES) if batch_rows > 1 else READ_BATCH_BYTES
            yield from self._file.iter_batches(
                batch_size=max(1, min(batch_rows, READ_BATCH_BYTES // each)), row_groups=[number], columns=self._columns
            )
