"""The end of a replica: finished rows are committed, the board is told the reason, then the process dies."""

import asyncio
import traceback
from collections.abc import Callable

from magbatch.replica.board import Board
from magbatch.replica.commits import Commits
from magbatch.replica.departure import Departure
from magbatch.replica.in_flight import InFlight
from magbatch.replica.losses import LossReason
from magbatch.replica.reports import Reports
from magbatch.replica.timing import Timing
from magbatch.replica.watchdog import Background


class Ending:
    """Final steps of a replica; its replacement asks the ledger for the rows that are left.

    Args:
        name: Name of the replica on the board.
        board: Board of the run, which is told the reason.
        commits: Finished rows and their commits.
        in_flight: Rows inside the engine.
        reports: Reports to the board.
        departure: State with the notice that the process is about to be killed.
        background: Tasks of the replica.
        die: Callback that ends this process.
        timing: Wait for SIGTERM after the engine died, and other durations in seconds.
    """

    def __init__(
        self,
        name: str,
        board: Board,
        *,
        commits: Commits,
        in_flight: InFlight,
        reports: Reports,
        departure: Departure,
        background: Background,
        die: Callable[[], None],
        timing: Timing,
    ) -> None:
        self._name, self._board, self._die = name, board, die
        self._commits, self._in_flight, self._reports = commits, in_flight, reports
        self._departure, self._background, self._timing = departure, background, timing
        self._with_engine: asyncio.Task[None] | None = None
        self._with_defect: asyncio.Task[None] | None = None

    async def now(self, reason: LossReason | None = None) -> None:
        """End the replica.

        Args:
            reason: Reason of the end; None if the board has it already.
        """
        await self._commits.commit_all()
        await self._reports.send()
        await self._board.left(self._name, reason)
        self._die()

    def with_engine(self, reason: LossReason, detail: str) -> asyncio.Task[None]:
        """End the replica in the background because its engine died or hangs; later calls return the same task.

        Args:
            reason: Reason of the end.
            detail: Duration or error that the reason's sentence names.
        """
        if self._with_engine is None:
            self._with_engine = self._background.start(self._end_with_engine(reason, detail))
        return self._with_engine

    def with_defect(self, error: Exception) -> None:
        """End the replica because a background task failed: without it, rows would hang or stay uncommitted."""
        self._with_defect = asyncio.create_task(self._end_with_defect(f"{type(error).__name__}: {error}"))

    async def _end_with_engine(self, reason: LossReason, detail: str) -> None:
        """Strike the rows that were in the engine, unless the node took the engine away."""
        notice = self._departure.notice
        if notice is not None and await asyncio.to_thread(notice.wait, self._timing.notice_wait_s):
            await self.now(LossReason.NODE_GOES)
            return
        await self._board.strike(self._name, self._in_flight.by_shard(), reason, detail)
        await self.now()

    async def _end_with_defect(self, cause: str) -> None:
        try:
            await asyncio.wait_for(self._commits.commit_all(), self._timing.notice_s)
        except Exception:  # noqa: BLE001 - the defect may be in the commits; uncommitted rows are asked again
            traceback.print_exc()
        try:
            await self._board.broke(self._name, cause)
        finally:
            self._die()
