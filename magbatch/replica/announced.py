"""Rows that a replica is responsible for: the board knows each of them before the engine does.

A replica whose event loop hangs cannot report any more. So it announces rows before it starts them, and the board knows
which rows to strike when the driver ends such a replica.
"""

from collections.abc import Iterable

from magbatch.replica.board import Board

ROWS_AHEAD = 256  # rows in one announcement: a call to the board for each row would be too many calls


class Announced:
    """Rows that were announced and are not finished.

    Args:
        replica: Name of the replica on the board.
        board: Board of the run, to which rows are announced.
    """

    def __init__(self, replica: str, board: Board) -> None:
        self._replica, self._board = replica, board
        self._rows: dict[int, set[str]] = {}

    async def send(self, shard: int, row_ids: Iterable[str]) -> None:
        """Announce rows of a shard that are about to enter the engine."""
        # The rows are noted before the call, so that a report that overtakes the call has them too.
        self._rows.setdefault(shard, set()).update(row_ids)
        # All rows are sent, not only the new ones: rows that finished since the last report must not be struck.
        await self._board.announce(self._replica, self.by_shard())

    def leave(self, shard: int, row_id: str) -> None:
        """Remove a finished row; a row that was not announced is ignored."""
        self._rows.get(shard, set()).discard(row_id)

    def end(self, shard: int, row_ids: Iterable[str]) -> None:
        """Remove rows of a shard that have left the engine; rows of other pieces of the shard stay."""
        rows = self._rows.get(shard, set())
        rows.difference_update(row_ids)
        if not rows:
            self._rows.pop(shard, None)

    def by_shard(self) -> dict[int, list[str]]:
        """Shard to the ids of its announced rows."""
        return {shard: list(rows) for shard, rows in self._rows.items() if rows}
