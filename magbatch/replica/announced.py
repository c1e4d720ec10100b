"""The rows that a replica answers for: the board knows each of them before the engine does.

A replica whose event loop stands still can say nothing any more. So what it is about to begin is told beforehand, and
the board knows which rows to strike when the driver ends such a replica.
"""

from collections.abc import Iterable

from magbatch.replica.board import Board

ROWS_AHEAD = 256  # told at once: one call for each so many rows


class Announced:
    """Rows that were told and are not finished.

    Args:
        replica: The replica's name.
        board: Where the replicas of the job meet.
    """

    def __init__(self, replica: str, board: Board) -> None:
        self._replica, self._board = replica, board
        self._rows: dict[int, set[str]] = {}

    async def tell(self, shard: int, row_ids: Iterable[str]) -> None:
        """Rows of a shard are about to be let into the engine."""
        told = list(row_ids)
        self._rows.setdefault(shard, set()).update(told)  # before the call: a report under way has them too
        # All of them: a row that has finished since the last report is not to be struck for what comes after it.
        await self._board.announce(self._replica, self.by_shard())

    def leave(self, shard: int, row_id: str) -> None:
        """A row is finished; one that was not told is no error."""
        self._rows.get(shard, set()).discard(row_id)

    def end(self, shard: int, row_ids: Iterable[str]) -> None:
        """None of these rows of a shard is in the engine any more; other pieces of the shard may be."""
        rows = self._rows.get(shard, set())
        rows.difference_update(row_ids)
        if not rows:
            self._rows.pop(shard, None)

    def by_shard(self) -> dict[int, list[str]]:
        """The rows, by shard."""
        return {shard: list(rows) for shard, rows in self._rows.items() if rows}
