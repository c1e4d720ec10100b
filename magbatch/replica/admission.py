"""Admission of rows to the engine, within a bound of requests and bytes."""

import asyncio
from collections import deque
from contextlib import suppress

ADMITTED_PER_SLOT = 2  # a slot that falls free finds its next row waiting inside the engine
ADMITTED_BYTES = 2 << 30  # 300 images of 1540 x 1540 pixels, 7 MB each


class Admission:
    """Gate that lets rows into the engine in the order in which they come.

    A row always enters an empty engine, however large it is. Otherwise a row above a bound would stop the job.

    Args:
        rows: Bound for the requests of unfinished rows. A row makes one request at a time, or one for each page group.
        bytes_: Bound for the bytes of their prompts.

    Attributes:
        rows: Requests of the rows inside.
        bytes: Bytes of the prompts inside.
    """

    def __init__(self, rows: int, bytes_: int = ADMITTED_BYTES) -> None:
        self._max_rows, self._max_bytes = rows, bytes_
        self.rows = 0
        self.bytes = 0
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Number of rows that wait to enter."""
        return len(self._waiting)

    async def enter(self, size: int, requests: int = 1) -> None:
        """Wait for room for a row; every `enter` needs its `leave`.

        Args:
            size: Bytes of its prompt.
            requests: Requests that it makes at once.
        """
        if not self._waiting and self._fits(size, requests):
            self._take(size, requests)
            return
        entry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, requests, entry))
        try:
            await entry
        except asyncio.CancelledError:
            if entry.done() and not entry.cancelled():
                self.leave(size, requests)  # admitted and cancelled at the same time: hand the room on
            else:
                with suppress(ValueError):  # a leave may have removed it already
                    self._waiting.remove((size, requests, entry))
                self._let_in()
            raise

    def leave(self, size: int, requests: int = 1) -> None:
        """Give a row's room back; the arguments are those of its `enter`."""
        self.rows -= requests
        self.bytes -= size
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._fits(*self._waiting[0][:2]):
            size, requests, entry = self._waiting.popleft()
            if not entry.cancelled():
                self._take(size, requests)
                entry.set_result(None)

    def _fits(self, size: int, requests: int) -> bool:
        return self.rows == 0 or (self.rows + requests <= self._max_rows and self.bytes + size <= self._max_bytes)

    def _take(self, size: int, requests: int) -> None:
        self.rows += requests
        self.bytes += size
