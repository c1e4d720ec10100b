"""The reasons for which a replica takes no more rows: its node goes, its devices are recalled, or the run stops."""

import asyncio
import threading
from collections.abc import Callable

from magbatch.replica.board import Board, Order
from magbatch.replica.timing import Timing


class Departure:
    """Whether and why a replica is about to end.

    Args:
        board: Board of the run, which is told why.
        notice: Event that is set when this process is about to be killed; None if there is no such signal.
        on_stop: Callback that aborts the rows in the engine, called once.
        timing: Time from the notice to the end of the process, in seconds.

    Attributes:
        notice: Event that is set when this process is about to be killed.
        since: Time (monotonic, s) at which the replica stopped taking rows; None while it takes rows.
        is_recalled: Whether the devices are to go to another job.
        is_stopped: Whether the rows in the engine were aborted.
    """

    def __init__(
        self, board: Board, notice: threading.Event | None, on_stop: Callable[[], None], timing: Timing
    ) -> None:
        self._board, self._on_stop, self._timing = board, on_stop, timing
        self.notice = notice
        self.since: float | None = None
        self.is_recalled = self.is_stopped = False

    @property
    def takes_rows(self) -> bool:
        """Whether rows may still enter the engine."""
        return self.since is None and not self.is_stopped

    def stop(self) -> None:
        """Take no more rows and abort those in the engine."""
        self.is_stopped = True
        self._on_stop()

    def is_late(self, now: float) -> bool:
        """Whether the time for rows in the engine is over."""
        return self.since is not None and now - self.since > self._timing.notice_s

    async def wait(self) -> None:
        """Wait while only rows in the engine are finished, until they are aborted."""
        while self.since is not None and not self.is_stopped:
            await asyncio.sleep(self._timing.tick_s)

    async def check_notice(self, now: float) -> None:
        """Start to leave if the notice has come since the last check."""
        if self.since is None and self.notice is not None and self.notice.is_set():
            self.since = now
            await self._board.trouble("a node is about to go: its replica commits its finished rows")

    async def obey(self, order: Order, now: float) -> None:
        """Follow an order of the driver."""
        if order == Order.STOP and not self.is_stopped:
            self.stop()
        if order == Order.GIVE_BACK and self.takes_rows:
            self.since, self.is_recalled = now, True
            await self._board.trouble("another job gets these devices: a replica commits its finished rows")
