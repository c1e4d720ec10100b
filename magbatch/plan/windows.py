"""Windows of rows, cut into shards that hold rows of equal value next to each other.

Every row is in one shard, once, and keeps its id. Rows move within a window only. A window is a range of rows of one
file, or of neighbouring small files, so small that a read task reads it in one pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from magbatch.arrow_types import ListArray

# A read task decodes a whole window and keeps the rows of its own shards; several tasks may read the same window.
WINDOW_ROWS = 32_768
WINDOW_BYTES = 256 << 20  # size of a window's rows as read: bounds the memory of a read task

Integers = NDArray[Any]  # array of an integer dtype, which each description names


@dataclass(frozen=True, slots=True)
class ColumnValues:
    """The values of the grouping column, without the values themselves.

    Attributes:
        hashes: uint64 array (rows,): hash of each row's value; 0 for null.
        sizes: int64 array (rows,): bytes of each row as read.
    """

    hashes: Integers
    sizes: Integers


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Shards as runs. A run is the rows of one file that a shard holds next to each other.

    Attributes:
        shard: int64 array (runs,): shard number of each run.
        source: int64 array (runs,): index of each run's file.
        start: int64 array (runs,): first row of each run in its file, from 0.
        rows: int64 array (runs,): number of rows in each run.
        positions: Arrow list of int32, (runs,): offset of each row from `start`, in the order of the shard; null if
            the rows follow each other.
    """

    shard: Integers
    source: Integers
    start: Integers
    rows: Integers
    positions: ListArray


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of one file in one window.

    Attributes:
        source: Index of the file.
        start: First row in the file, from 0.
        rows: Number of rows.
        hashes: uint64 array (rows,): hash of each row's value; None if the rows keep their order.
        ends: Whether the window ends with this piece.
    """

    source: int
    start: int
    rows: int
    hashes: Integers | None
    ends: bool


def pieces(file_rows: list[int], values: list[ColumnValues | None]) -> Iterator[Piece]:
    """Cut files into windows; the pieces cover all rows, in order.

    A window takes as many rows as WINDOW_ROWS and WINDOW_BYTES allow. If the last group would be cut, the window ends
    before that group, provided that half of the window remains. The next small file joins an unfinished window.

    Example: WINDOW_ROWS = 4, one file with the values A A A B B C. Four rows would cut the two B apart, so the first
    window ends after three rows.

        Piece(source=0, start=0, rows=3, hashes=[A A A], ends=True)
        Piece(source=0, start=3, rows=3, hashes=[B B C], ends=False)

    Args:
        file_rows: Number of rows of each file.
        values: Values of each file; None for a file whose rows keep their order.
    """
    rows = size = 0  # rows and bytes of the unfinished window
    for source, (total, found) in enumerate(zip(file_rows, values, strict=True)):
        if found is None:
            yield Piece(source, 0, total, None, ends=False)
            rows = size = 0
            continue
        bytes_before = np.concatenate([[0], np.cumsum(found.sizes)])
        start = 0
        while start < total:
            limit = bytes_before[start] + WINDOW_BYTES - size
            fits = int(np.searchsorted(bytes_before, limit, side="right")) - 1
            end = min(start + WINDOW_ROWS - rows, total, max(fits, start if rows else start + 1))
            whole = end
            while start < whole < total and found.hashes[whole - 1] == found.hashes[whole]:
                whole -= 1
            if whole > start and rows + whole - start >= (rows + end - start) // 2:
                end = whole
            rows, size = rows + end - start, size + int(bytes_before[end] - bytes_before[start])
            ends = end < total
            yield Piece(source, start, end - start, found.hashes[start:end], ends)
            start = end
            if ends:
                rows = size = 0


class Cutter:
    """Cutter of windows into shards. Groups stay whole if they fit into a shard.

    Args:
        target_rows: Number of rows after which a shard is full.
        max_rows: Number of rows that a shard may have to keep a group whole.
    """

    def __init__(self, target_rows: int, max_rows: int) -> None:
        self._target_rows, self._max_rows = target_rows, max_rows
        self._shards = 0  # shards so far
        self._window: list[Piece] = []
        self._runs: list[tuple[Integers, Integers, Integers, Integers]] = []  # shard, source, start, rows
        self._positions: list[Integers] = []
        self._scattered: list[Integers] = []  # bool array (runs,) of each window: whether a run has positions
        self._rows = self._groups = 0  # rows that were grouped, and their groups

    def add(self, piece: Piece) -> None:
        """Add the next piece of `pieces`."""
        if self._window and (piece.hashes is None) != (self._window[-1].hashes is None):
            self._close()
        self._window.append(piece)
        if piece.ends:
            self._close()

    def _close(self) -> None:
        """Cut the window into shards."""
        window = [piece for piece in self._window if piece.rows]
        self._window = []
        if not window:
            return
        source = np.concatenate([np.full(piece.rows, piece.source) for piece in window])
        row = np.concatenate([np.arange(piece.start, piece.start + piece.rows) for piece in window])
        hashes = [piece.hashes for piece in window if piece.hashes is not None]
        if hashes:
            order, sizes = _by_value(np.concatenate(hashes))
            source, row = source[order], row[order]
            self._rows, self._groups = self._rows + len(row), self._groups + len(sizes)
        else:
            sizes = np.ones(len(row), dtype=np.int64)
        lengths = _cut(sizes.tolist(), self._target_rows, self._max_rows if hashes else self._target_rows)
        shard = np.repeat(np.arange(self._shards, self._shards + len(lengths)), lengths)
        self._shards += len(lengths)
        self._add_runs(shard, source, row)

    def _add_runs(self, shard: Integers, source: Integers, row: Integers) -> None:
        """Join rows into runs of one shard and one file.

        Example: four rows of file 0; shard 0 holds rows 1, 4 and 2 of it, shard 1 holds row 3.

            shard = [0 0 0 1], source = [0 0 0 0], row = [1 4 2 3]

        gives two runs. The first starts at row 1, has 3 rows and the positions [0 3 1], because its rows do not
        follow each other. The second starts at row 3, has 1 row and no positions.

        Args:
            shard: int64 array (rows,): shard of each row, ascending.
            source: int64 array (rows,): index of each row's file.
            row: int64 array (rows,): position of each row in its file.
        """
        begins_run = np.ones(len(row), dtype=bool)
        begins_run[1:] = (shard[1:] != shard[:-1]) | (source[1:] != source[:-1])
        begins = np.flatnonzero(begins_run)
        rows = np.diff(np.append(begins, len(row)))
        start = np.minimum.reduceat(row, begins)
        jumps = np.zeros(len(row), dtype=np.int64)  # 1 for a row that does not follow the row before it in its run
        jumps[1:] = (row[1:] != row[:-1] + 1) & ~begins_run[1:]
        scattered = np.add.reduceat(jumps, begins) > 0
        self._runs.append((shard[begins], source[begins], start, rows))
        self._scattered.append(scattered)
        offsets = row - np.repeat(start, rows)
        self._positions.append(offsets[np.repeat(scattered, rows)].astype(np.int32))

    def arrangement(self) -> Arrangement:
        """Close the last window, and return all shards."""
        self._close()
        shard, source, start, rows = (np.concatenate([run[index] for run in self._runs]) for index in range(4))
        scattered = np.concatenate(self._scattered)
        ends = np.cumsum(np.where(scattered, rows, 0))
        positions = pa.ListArray.from_arrays(
            pa.array(np.append(0, ends), pa.int32(), mask=np.append(~scattered, False)),
            pa.array(np.concatenate(self._positions)),
        )
        return Arrangement(shard, source, start, rows, positions)

    def note(self, column: str) -> str:
        """Describe the groups for a person.

        Args:
            column: Name of the grouping column.
        """
        moved = any(scattered.any() for scattered in self._scattered)
        how = "are placed side by side" if moved else "stand side by side already"
        return f"rows with the same {column!r} {how}: {self._rows / self._groups:,.1f} at a time"


def _by_value(hashes: Integers) -> tuple[Integers, Integers]:
    """Order rows so that equal values stand together; values keep the order of their first rows.

    Example: the hashes [7 5 7 9] give the order [0 2 1 3] and the group sizes [2 1 1].

    Args:
        hashes: uint64 array (rows,).

    Returns:
        int64 array (rows,): row numbers in the new order; int64 array (groups,): rows of each group, in that order.
    """
    _, first, value, count = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    by_first = np.argsort(first)
    rank = np.empty_like(by_first)
    rank[by_first] = np.arange(len(first))
    return np.argsort(rank[value], kind="stable"), count[by_first]


def _cut(groups: list[int], target_rows: int, max_rows: int) -> list[int]:
    """Number of rows in each shard.

    A shard takes whole groups until it has `target_rows`. It may grow to `max_rows` to take its last group whole. A
    larger group is cut into even pieces.

    Example: groups of 3, 3, 2 and 13 rows, a target of 4 rows and at most 6 rows give shards of 6, 2, 4, 4 and 5 rows.
    """
    shards: list[int] = []
    held = 0
    for group in groups:
        if held and (held >= target_rows or held + group > max_rows):
            shards.append(held)
            held = 0
        if group > max_rows:
            pieces = -(-group // max_rows)
            shards += [(group * (piece + 1)) // pieces - (group * piece) // pieces for piece in range(pieces)]
        else:
            held += group
    return [*shards, held] if held else shards
