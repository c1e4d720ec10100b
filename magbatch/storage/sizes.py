"""Bytes that rows take as read, however small their file is, and shards cut into pieces of so many.

A page with a dictionary, or with common beginnings, repeats in kilobytes what takes gigabytes in memory, and no footer
says so. A shard's pieces depend on its rows alone: whichever task reads it makes the same ones.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.rows import Segment, Shard

SHARD_BYTES = 256 << 20  # of a shard that is read at once
PIECE_BYTES = 128 << 20  # of a piece of a larger one: a reader holds several, as tables and as blocks
VALUE_BYTES = 8  # a number, or where a text begins
DICTIONARIES = {"RLE_DICTIONARY", "PLAIN_DICTIONARY"}
PREFIXES = "DELTA_BYTE_ARRAY"

Run = tuple[int, int]  # rows, and bytes of each
Opener = Callable[[list[str]], pq.ParquetFile]  # gives the columns of these paths as dictionaries


class Dictionaries:
    """Looks at the dictionaries of a file's columns.

    Args:
        open_with: Opens the file, giving columns as dictionaries.
        passed_on: Errors that are none of the file's content.
    """

    def __init__(self, open_with: Opener, passed_on: tuple[type[Exception], ...]) -> None:
        self._open_with, self._passed_on = open_with, passed_on

    def __call__(self, group: int, path: str) -> int | None:
        """Bytes of the longest value; None if the dictionary cannot be read."""
        try:
            file = self._open_with([path])
            batches = file.iter_batches(
                batch_size=1, row_groups=[group], columns=[path], use_threads=False
            )  # one row brings the whole dictionary
            array = next(batches).column(0)
            while not pa.types.is_dictionary(array.type):
                array = array.field(0) if pa.types.is_struct(array.type) else array.values
            return int(pa.compute.max(pa.compute.binary_length(array.dictionary)).as_py())
        except self._passed_on:
            raise
        except Exception:  # noqa: BLE001 - a file's boundary: what is wrong with it is found when it is read
            return None


class RowSizes:
    """Sizes of one file's rows, by row group.

    Args:
        dictionaries: Looks at the file's dictionaries.
        metadata: Its footer.
        columns: Input columns that are read.
    """

    def __init__(self, dictionaries: Dictionaries, metadata: pq.FileMetaData, columns: list[str]) -> None:
        self._dictionaries, self._metadata = dictionaries, metadata
        paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
        self._chosen = [at for at, path in enumerate(paths) if path.partition(".")[0] in columns or path in columns]
        groups = range(metadata.num_row_groups)
        self.ends = list(accumulate(int(metadata.row_group(group).num_rows) for group in groups))
        self._longest: dict[tuple[int, int], int] = {}

    def groups(self, start: int, rows: int) -> Iterator[tuple[int, int]]:
        """Number of each row group that rows stand in, and how many do."""
        end = start + rows
        while start < end:
            group = bisect_right(self.ends, start)
            found = min(end, self.ends[group]) - start
            yield group, found
            start += found

    def row_bytes(self, group: int, rows: int, room: int) -> int:
        """Bytes of a row of a row group; of the largest, where values repeat and `rows` of them may be above `room`."""
        found = self._metadata.row_group(group)
        chunks = [(at, found.column(at)) for at in self._chosen]
        total = max(1, found.num_rows)
        average = int(sum(max(one.total_uncompressed_size, self._least(at, one)) for at, one in chunks)) // total
        packed = [(at, one) for at, one in chunks if _repeats(one)]
        if rows * (average + sum(one.total_uncompressed_size for _, one in packed)) > room:
            average += sum(self._value_bytes(group, at, one) * -(-one.num_values // total) for at, one in packed)
        return int(max(1, average))

    def has_prefixes(self, group: int) -> bool:
        """Whether no page of a row group says how long its values are."""
        found = self._metadata.row_group(group)
        return any(PREFIXES in found.column(at).encodings for at in self._chosen)

    def _least(self, at: int, chunk: pq.ColumnChunkMetaData) -> int:
        return int(chunk.num_values * max(VALUE_BYTES, self._metadata.schema.column(at).length))

    def _value_bytes(self, group: int, at: int, chunk: pq.ColumnChunkMetaData) -> int:
        """Bytes of the longest value of a chunk's dictionary, or more."""
        if (group, at) not in self._longest:
            found = None if PREFIXES in chunk.encodings else self._dictionaries(group, chunk.path_in_schema)
            self._longest[group, at] = chunk.total_uncompressed_size if found is None else found
        return self._longest[group, at]


def _repeats(chunk: pq.ColumnChunkMetaData) -> bool:
    return chunk.physical_type == "BYTE_ARRAY" and bool({*DICTIONARIES, PREFIXES} & {*chunk.encodings})


def cut(shard: Shard, sizes: dict[tuple[str, int], list[Run]]) -> list[Shard]:
    """A large shard in pieces of at most `PIECE_BYTES`, or of one row; any other as it is.

    Args:
        shard: The shard.
        sizes: Rows of each segment, by path and first row.
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
