"""What is being read stands where it outlives its reader, so that a row that ends readers is found, and ends no more.

A shard is noted when a reader begins it, and again when it is read. If it is begun twice, the reader in between died:
its rows are then read one by one, each noted before it is touched.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from magbatch.errors import ErrorCode, Step
from magbatch.rows import DeadLetter, Shard

STRIKES = 3  # readers that may die over one row: the first names the shard alone
MOST_DEATHS = 32  # readers that may die at one shard, whatever its rows have to do with it, and at rows of one file


@dataclass(frozen=True, slots=True)
class Deaths:
    """What the board knows of a shard that a reader begins.

    Attributes:
        readers: Readers that died while they had the shard.
        rows: Row id to the readers that died at this very row.
        files: Key of a file to the readers that died at its rows, in this shard or another.
    """

    readers: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)

    def touch(self, shard: Shard) -> bool:
        """Whether the rows of a shard are to be looked at one by one."""
        return self.readers > 0 or self.give_up(shard)

    def give_up(self, shard: Shard) -> bool:
        """Whether a file of a shard has ended so many readers that none of its rows is read any more."""
        return any(self.files.get(segment.key, 0) >= MOST_DEATHS for segment in shard.segments)

    @property
    def sizes_kill(self) -> bool:
        """Whether readers die before they come to a row, where they find out how large rows are."""
        return self.readers >= STRIKES and not self.rows

    def letter(self, row_id: str) -> DeadLetter | None:
        """Why a row is not to be read any more; None if it is to be read."""
        struck = self.rows.get(row_id, 0) + 1
        if struck >= STRIKES:
            message = (
                f"{struck - 1} processes died while they read it alone, after one that read its shard: "
                "it takes more memory than there is, or crashes a library"
            )
        elif (at_file := self.files.get(_file(row_id), 0)) >= MOST_DEATHS:
            message = f"{at_file} processes died while they read rows of its file, of which no more rows are tried"
        elif self.readers >= MOST_DEATHS:
            message = f"{self.readers} processes that read its shard died, and which row does it cannot be told"
        else:
            return None
        return DeadLetter(row_id, Step.READ, ErrorCode.READER_KILLER, message)


class ReadLog:
    """The board's part: shards that are being read, and deaths at them. It is as large as what is read at once."""

    def __init__(self) -> None:
        self._reading: dict[int, str | None] = {}
        self._deaths: dict[int, Deaths] = {}
        self._files: dict[str, int] = {}

    def begin(self, shard: int) -> Deaths:
        """A reader begins a shard; what is known of it."""
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
        """A reader touches this row of a shard, and no other; None once it is done with it."""
        self._reading[shard] = row_id

    def end(self, shard: int) -> None:
        """A shard is read, or its reader gave it up by itself."""
        self._reading.pop(shard, None)


class Notes(Protocol):
    """The log, as a reader sees it: `begin` and `row` have arrived there when they return."""

    def begin(self, shard: int) -> Deaths:
        """See `ReadLog.begin`."""

    def row(self, shard: int, row_id: str | None) -> None:
        """See `ReadLog.row`."""

    def end(self, shard: int) -> None:
        """See `ReadLog.end`."""


def _file(row_id: str) -> str:
    """The key of a row's file."""
    return row_id.rpartition("-")[0]


def one_by_one(shard: Shard, done: frozenset[str]) -> Iterator[tuple[str, Shard]]:
    """The rows of a shard that are not done, each with a shard of it alone."""
    for segment in shard.segments:
        for offset, row_id in enumerate(segment.row_ids()):
            if row_id not in done:
                yield row_id, Shard(shard.index, (replace(segment, start=segment.start + offset, rows=1),))
