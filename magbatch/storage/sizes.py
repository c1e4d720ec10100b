"""Estimate the memory that rows take once read, and cut large shards into pieces that fit.

Parquet's dictionary and prefix encodings can store gigabytes of repeated text in kilobytes, and no footer says so. The
pieces of a shard depend only on its rows, so every task that reads the shard makes the same pieces.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.rows import Segment, Shard

SHARD_BYTES = 256 << 20  # largest shard that is read whole
PIECE_BYTES = 128 << 20  # largest piece of a larger shard: a reader holds several, as tables and as blocks
VALUE_BYTES = 8  # least memory of a value, for a number or the offset of a text
DICTIONARIES = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
PREFIXES = "DELTA_BYTE_ARRAY"

Run = tuple[int, int]  # number of rows, and bytes of each
Opener = Callable[[list[str]], pq.ParquetFile]  # opens the file so that the columns of these paths are dictionaries


class Dictionaries:
    """Longest values of a file's dictionary-encoded columns.

    Args:
        open_with: Callable that opens the file with some columns read as dictionaries.
        passed_on: Error types that are raised, because they do not come from the file's content.
    """

    def __init__(self, open_with: Opener, passed_on: tuple[type[Exception], ...]) -> None:
        self._open_with, self._passed_on = open_with, passed_on

    def __call__(self, group: int, path: str) -> int | None:
        """Return the bytes of the longest value in a dictionary; None if it cannot be read.

        Args:
            group: Index of the row group.
            path: Path of the column in the Parquet schema.
        """
        try:
            file = self._open_with([path])
            # Reading one row loads the whole dictionary.
            batches = file.iter_batches(batch_size=1, row_groups=[group], columns=[path], use_threads=False)
            array: Any = next(batches).column(0)  # array of any layout
            while not pa.types.is_dictionary(array.type):
                array = array.field(0) if pa.types.is_struct(array.type) else array.values
            return int(pa.compute.max(pa.compute.binary_length(array.dictionary)).as_py())
        except self._passed_on:
            raise
        except Exception:  # noqa: BLE001 - a damaged file is reported when its rows are read
            return None


class RowSizes:
    """Sizes of one file's rows, by row group.

    Args:
        dictionaries: Reader of the file's dictionaries.
        metadata: Footer of the file.
        columns: Names of the input columns that are read.

    Attributes:
        ends: Row number after the last row of each row group.
    """

    def __init__(self, dictionaries: Dictionaries, metadata: pq.FileMetaData, columns: list[str]) -> None:
        self._dictionaries, self._metadata = dictionaries, metadata
        paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
        self._chosen = [at for at, path in enumerate(paths) if path.partition(".")[0] in columns or path in columns]
        groups = range(metadata.num_row_groups)
        self.ends = list(accumulate(int(metadata.row_group(group).num_rows) for group in groups))
        self._longest: dict[tuple[int, int], int] = {}

    def groups(self, start: int, rows: int) -> Iterator[tuple[int, int]]:
        """Yield the index of each row group that holds some of the rows, and the number of those rows.

        Args:
            start: First row in the file, from 0.
            rows: Number of rows.
        """
        end = start + rows
        while start < end:
            group = bisect_right(self.ends, start)
            found = min(end, self.ends[group]) - start
            yield group, found
            start += found

    def row_bytes(self, group: int, rows: int, room: int) -> int:
        """Estimate the bytes of one row of a row group.

        The estimate is the average. If the rows may not fit in `room`, dictionary values count with the longest one.

        Args:
            group: Index of the row group.
            rows: Number of rows that are read together.
            room: Bytes that they may take.
        """
        found = self._metadata.row_group(group)
        chunks = [(at, found.column(at)) for at in self._chosen]
        total = max(1, found.num_rows)
        average = int(sum(max(one.total_uncompressed_size, self._least(at, one)) for at, one in chunks)) // total
        packed = [(at, one) for at, one in chunks if _repeats(one)]
        if rows * (average + sum(one.total_uncompressed_size for _, one in packed)) > room:
            average += sum(self._value_bytes(group, at, one) * -(-one.num_values // total) for at, one in packed)
        return int(max(1, average))

    def has_prefixes(self, group: int) -> bool:
        """Whether a row group has prefix-encoded values, whose lengths are known only after decoding."""
        found = self._metadata.row_group(group)
        return any(PREFIXES in found.column(at).encodings for at in self._chosen)

    def _least(self, at: int, chunk: pq.ColumnChunkMetaData) -> int:
        return int(chunk.num_values * max(VALUE_BYTES, self._metadata.schema.column(at).length or 0))

    def _value_bytes(self, group: int, at: int, chunk: pq.ColumnChunkMetaData) -> int:
        """Return an upper bound for the bytes of a value in a column chunk."""
        if (group, at) not in self._longest:
            found = None if PREFIXES in chunk.encodings else self._dictionaries(group, chunk.path_in_schema)
            self._longest[group, at] = chunk.total_uncompressed_size if found is None else found
        return self._longest[group, at]


def _repeats(chunk: pq.ColumnChunkMetaData) -> bool:
    return chunk.physical_type == "BYTE_ARRAY" and bool({*DICTIONARIES, PREFIXES} & {*chunk.encodings})


def cut(shard: Shard, sizes: dict[tuple[str, int], list[Run]]) -> list[Shard]:
    """Cut a shard above `SHARD_BYTES` into pieces of at most `PIECE_BYTES`, or of one row if that is larger.

    For example, a shard of 300 rows of 1 MiB each becomes pieces of 128, 128 and 44 rows.

    Args:
        shard: Shard to cut; a smaller one is returned whole.
        sizes: Row counts and row sizes of each segment, by the segment's path and first row.
    """
    runs = [sizes[segment.path, segment.start] for segment in shard.segments]
    if sum(rows * each for found in runs for rows, each in found) <= SHARD_BYTES:
        return [shard]
    pieces: list[list[Segment]] = [[]]
    held = 0
    for segment, found in zip(shard.segments, runs, strict=True):
        start = segment.start
        for rows, each in found:
            left = rows
            while left:
                fit = min(left, max(0 if pieces[-1] else 1, (PIECE_BYTES - held) // each))
                if not fit:
                    pieces.append([])
                    held = 0
                    continue
                pieces[-1].append(replace(segment, start=start, rows=fit))
                start, left, held = start + fit, left - fit, held + fit * each
    return [Shard(shard.index, tuple(piece)) for piece in pieces]
