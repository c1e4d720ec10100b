"""Rows enter the engine in the order in which they ask, within a bound of requests and bytes."""

import asyncio
from collections import deque
from contextlib import suppress

ADMITTED_PER_SLOT = 2  # a slot that falls free finds its next row waiting in the engine
ADMITTED_BYTES = 2 << 30  # an image of 1540 x 1540 pixels is 7 MB; 300 of them


class Admission:
    """Lets rows into the engine in the order in which they ask, within a bound of requests and bytes.

    The first row always enters, however large: a bound that nothing fits under would stop the job.

    Args:
        rows: Requests of unfinished rows at most: one for each row, but for a document that is read in parts.
        bytes_: Bytes of their prompts at most.
    """

    def __init__(self, rows: int, bytes_: int = ADMITTED_BYTES) -> None:
        self._max_rows, self._max_bytes = rows, bytes_
        self.rows = 0
        self.bytes = 0
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Rows that wait to be let in."""
        return len(self._waiting)

    async def enter(self, size: int, requests: int = 1) -> None:
        """Wait for a place for one row of `size` bytes; every `enter` needs its `leave`."""
        if not self._waiting and self._fits(size, requests):
            self._take(size, requests)
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, requests, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave(size, requests)  # let in and cancelled at once: hand the place on
            else:
                with suppress(ValueError):  # a leave has passed over it meanwhile
                    self._waiting.remove((size, requests, place))
                self._let_in()
            raise

    def leave(self, size: int, requests: int = 1) -> None:
        """Give a row's place back."""
        self.rows -= requests
        self.bytes -= size
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._fits(*self._waiting[0][:2]):
            size, requests, place = self._waiting.popleft()
            if not place.cancelled():
                self._take(size, requests)
                place.set_result(None)

    def _fits(self, size: int, requests: int) -> bool:
        return self.rows == 0 or (self.rows + requests <= self._max_rows and self.bytes + size <= self._max_bytes)

    def _take(self, size: int, requests: int) -> None:
        self.rows += requests
        self.bytes += size
