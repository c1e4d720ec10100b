"""Windows of rows -> shards that hold rows of equal value side by side.

Every row is in one shard, once. Rows move within a window alone: rows of one file, or of neighbouring small
ones, few enough that a read task takes them in one pass. Row ids do not change.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

# A read task goes through a window once, and holds its own rows of it; several tasks may share one.
WINDOW_ROWS = 32_768
WINDOW_BYTES = 256 << 20  # as read

Integers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Values:
    """Of each row the hash of its value, and the bytes that it takes as read."""

    hashes: Integers
    sizes: Integers


@dataclass(frozen=True, slots=True)
class Arranged:
    """Shards, as runs of rows of one file each.

    Attributes:
        shard: Of each run.
        source: Its file, by its number.
        start: Its first row in the file.
        rows: How many.
        positions: Where each is, from `start` on; null where they follow each other.
    """

    shard: Integers
    source: Integers
    start: Integers
    rows: Integers
    positions: pa.ListArray


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one file that are cut into shards together with others of their window.

    Attributes:
        source: The file.
        start: The first of them.
        rows: How many.
        hashes: Of their values; None where they keep their order.
        ends: The window ends with them.
    """

    source: int
    start: int
    rows: int
    hashes: Integers | None
    ends: bool


def pieces(rows_of: list[int], values: list[Values | None]) -> Iterator[Piece]:
    """All rows in order, each once; a window ends between two groups where it can.

    Args:
        rows_of: Of each file.
        values: Of each file; None where its rows keep their order.
    """
    rows = size = 0
    for number, (total, found) in enumerate(zip(rows_of, values, strict=True)):
        if found is None:
            yield Piece(number, 0, total, None, ends=False)
            rows = size = 0
            continue
        taken = np.concatenate([[0], np.cumsum(found.sizes)])
        at = 0
        while at < total:
            fits = int(np.searchsorted(taken, taken[at] + WINDOW_BYTES - size, side="right")) - 1
            end = min(at + WINDOW_ROWS - rows, total, max(fits, at if rows else at + 1))
            whole = end
            while at < whole < total and found.hashes[whole - 1] == found.hashes[whole]:
                whole -= 1
            if whole > at and rows + whole - at >= (rows + end - at) // 2:
                end = whole
            rows, size = rows + end - at, size + int(taken[end] - taken[at])
            ends = end < total
            yield Piece(number, at, end - at, found.hashes[at:end], ends)
            at = end
            if ends:
                rows = size = 0


class Cutter:
    """Cuts windows into shards that hold whole groups, as far as they are not too large for one.

    Args:
        target: Rows in a shard.
        most: Rows that a shard may have where that keeps a group whole.
    """

    def __init__(self, target: int, most: int) -> None:
        self._target, self._most = target, most
        self._shards = 0
        self._window: list[Piece] = []
        self._runs: list[tuple[Integers, Integers, Integers, Integers]] = []  # shard, source, start, rows
        self._positions: list[Integers] = []
        self._scattered: list[Integers] = []  # for each run whether it has positions
        self._rows = self._groups = 0  # that were grouped, in all windows

    def add(self, piece: Piece) -> None:
        """One piece; the order of the pieces is kept, window by window."""
        if self._window and (piece.hashes is None) != (self._window[-1].hashes is None):
            self._close()
        self._window.append(piece)
        if piece.ends:
            self._close()

    def _close(self) -> None:
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
        lengths = _cut(sizes.tolist(), self._target, self._most if hashes else self._target)
        shard = np.repeat(np.arange(self._shards, self._shards + len(lengths)), lengths)
        self._shards += len(lengths)
        self._add_runs(shard, source, row)

    def _add_runs(self, shard: Integers, source: Integers, row: Integers) -> None:
        new = np.ones(len(row), dtype=bool)
        new[1:] = (shard[1:] != shard[:-1]) | (source[1:] != source[:-1])
        begins = np.flatnonzero(new)
        rows = np.diff(np.append(begins, len(row)))
        start = np.minimum.reduceat(row, begins)
        jumps = np.zeros(len(row), dtype=np.int64)
        jumps[1:] = (row[1:] != row[:-1] + 1) & ~new[1:]
        scattered = np.add.reduceat(jumps, begins) > 0
        self._runs.append((shard[begins], source[begins], start, rows))
        self._scattered.append(scattered)
        offsets = row - np.repeat(start, rows)
        self._positions.append(offsets[np.repeat(scattered, rows)].astype(np.int32))

    def arranged(self) -> Arranged:
        """All shards; the last window ends here."""
        self._close()
        columns = [np.concatenate([run[index] for run in self._runs]) for index in range(4)]
        shard, source, start, rows = columns
        scattered = np.concatenate(self._scattered)
        ends = np.cumsum(np.where(scattered, rows, 0))
        positions = pa.ListArray.from_arrays(
            pa.array(np.append(0, ends), pa.int32(), mask=np.append(~scattered, False)),
            pa.array(np.concatenate(self._positions)),
        )
        return Arranged(shard, source, start, rows, positions)

    def note(self, column: str) -> str:
        """What was found."""
        moved = any(scattered.any() for scattered in self._scattered)
        how = "are placed side by side" if moved else "stand side by side already"
        return f"rows with the same {column!r} {how}: {self._rows / self._groups:,.1f} at a time"


def _by_value(hashes: Integers) -> tuple[Integers, Integers]:
    """The order that puts equal values side by side, in the order in which they first come; and how many of each."""
    _, first, value, count = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    by_first = np.argsort(first)
    rank = np.empty_like(by_first)
    rank[by_first] = np.arange(len(first))
    return np.argsort(rank[value], kind="stable"), count[by_first]


def _cut(groups: list[int], target: int, most: int) -> list[int]:
    """Rows of each shard: whole groups up to `target`, one group up to `most`, even parts of a larger one."""
    shards: list[int] = []
    held = 0
    for group in groups:
        if held and (held >= target or held + group > most):
            shards.append(held)
            held = 0
        if group > most:
            parts = -(-group // most)
            shards += [(group * (part + 1)) // parts - (group * part) // parts for part in range(parts)]
        else:
            held += group
    return [*shards, held] if held else shards
