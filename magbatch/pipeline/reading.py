"""A log of the rows that are being read. It outlives the reader, so that a row that kills readers is found.

A reader notes a shard when it starts on it and again when it has read it. If a shard is started twice, the first reader
died. Its rows are then read one by one, and each is noted before it is touched.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from magbatch.errors import ErrorCode, Step
from magbatch.rows import DeadLetter, Shard

STRIKES = 3  # readers that may die over one row: the first death names only the shard, two more name the row
MOST_DEATHS = 32  # readers that may die at one shard, or at the rows of one file; bounds the restarts of a bad input


@dataclass(frozen=True, slots=True)
class Deaths:
    """Deaths of readers that concern a shard.

    Attributes:
        readers: Readers that died while they had the shard.
        rows: Row id to the number of readers that died at this row.
        files: Key of a file to the number of readers that died at its rows, in this shard or another.
    """

    readers: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def reads_rows_alone(self, shard: Shard) -> bool:
        """Whether the rows of a shard must be read one by one."""
        return self.readers > 0 or self.is_given_up(shard)

    def is_given_up(self, shard: Shard) -> bool:
        """Whether a file of the shard has killed so many readers that its rows are not read any more."""
        return any(self.files.get(segment.key, 0) >= MOST_DEATHS for segment in shard.segments)

    @property
    def sizes_kill(self) -> bool:
        """Whether readers die before they reach a row, while they find out how large the rows are."""
        return self.readers >= STRIKES and not self.rows

    def letter(self, row_id: str) -> DeadLetter | None:
        """The dead letter of a row that is not to be read any more; None if it is to be read."""
        struck = self.rows.get(row_id, 0) + 1
        if struck >= STRIKES:
            message = (
                f"{struck - 1} processes died while they read this row alone, after one that read its shard: "
                "the row needs more memory than there is, or crashes a library"
            )
        elif (at_file := self.files.get(_file(row_id), 0)) >= MOST_DEATHS:
            message = f"{at_file} processes died while they read rows of this file; no more of its rows are tried"
        elif self.readers >= MOST_DEATHS:
            message = f"{self.readers} processes died while they read this shard; the row that kills them is unknown"
        else:
            return None
        return DeadLetter(row_id, Step.READ, ErrorCode.READER_KILLER, message)


class Notes(Protocol):
    """The log, as a reader uses it. When `begin` and `row` return, the note is stored."""

    def begin(self, shard: int) -> Deaths:
        """Note that a reader starts on a shard; see `ReadLog.begin`."""

    def row(self, shard: int, row_id: str | None) -> None:
        """Note the row that a reader touches; see `ReadLog.row`."""

    def end(self, shard: int) -> None:
        """Note that a shard is read; see `ReadLog.end`."""


class ReadLog:
    """The log itself: shards that are being read, and deaths of readers. A shard leaves it once it is read."""

    def __init__(self) -> None:
        self._reading: dict[int, str | None] = {}
        self._deaths: dict[int, Deaths] = {}
        self._files: dict[str, int] = {}

    def begin(self, shard: int) -> Deaths:
        """Note that a reader starts on a shard.

        Returns:
            Deaths of earlier readers that concern the shard.
        """
        deaths = self._deaths.get(shard, Deaths())
        if shard in self._reading:
            row, rows = self._reading[shard], deaths.rows
            if row is not None:
                rows = rows | {row: rows.get(row, 0) + 1}
                self._files[_file(row)] = self._files.get(_file(row), 0) + 1
            deaths = self._deaths[shard] = Deaths(deaths.readers + 1, rows)
        self._reading[shard] = None
        return replace(deaths, files=dict(self._files))

    def row(self, shard: int, row_id: str | None) -> None:
        """Note the only row of a shard that a reader touches now; None once it is done with the row."""
        self._reading[shard] = row_id

    def end(self, shard: int) -> None:
        """Note that a shard is read, or that its reader gave it up without dying."""
        self._reading.pop(shard, None)


def one_by_one(shard: Shard, done: frozenset[str]) -> Iterator[tuple[str, Shard]]:
    """The rows of a shard that are not done: the id of each, and a shard that holds this row alone."""
    for segment in shard.segments:
        for offset, row_id in enumerate(segment.row_ids()):
            if row_id not in done:
                yield row_id, Shard(shard.index, (replace(segment, start=segment.start + offset, rows=1),))


def _file(row_id: str) -> str:
    """The key of a row's file."""
    return row_id.rpartition("-")[0]
