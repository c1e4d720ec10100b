"""Prompt -> tokens, in a vLLM replica.

Two promises. A row's sampling depends on the job's seed and the row's id alone: neither order nor
resume changes what is asked of the engine. And the engine always has work at hand, while memory
stays bounded: admission counts unfinished rows and their bytes, over all shards of the replica.
"""

import asyncio
import hashlib
from collections import deque
from contextlib import suppress

from magbatch.engines.base import Engine
from magbatch.errors import ErrorCode, RequestRejectedError, RowError
from magbatch.rows import Generation, Prompt
from magbatch.spec import SamplingSpec

ADMITTED_PER_SLOT = 2  # a slot that falls free finds its next row waiting in the engine
ADMITTED_BYTES = 2 << 30  # an image of 1540 x 1540 pixels is 7 MB; 300 of them


def row_seed(seed: int | None, row_id: str) -> int | None:
    """The engine's seed for one row: 63 bits of BLAKE2b over the job's seed and the row's id."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Generate:
    """Asks the engine, one row at a time.

    Args:
        engine: Where the tokens come from.
        sampling: The job's sampling parameters.
        max_model_len: Tokens that the engine can hold for one row.
    """

    def __init__(self, engine: Engine, sampling: SamplingSpec, max_model_len: int) -> None:
        self._engine = engine
        self._sampling = sampling
        self._max_model_len = max_model_len

    async def __call__(self, prompt: Prompt) -> Generation:
        """All samples of one row.

        Raises:
            RowError: `engine_rejected`.
            EngineDeadError: The engine is gone.
        """
        max_tokens = min(self._sampling.max_tokens, self._max_model_len - len(prompt.token_ids))
        try:
            return await self._engine.generate(
                prompt, max_tokens=max_tokens, seed=row_seed(self._sampling.seed, prompt.row_id)
            )
        except RequestRejectedError as error:
            raise RowError(ErrorCode.ENGINE_REJECTED, str(error)) from error


class Admission:
    """Lets rows into the engine in the order in which they ask, within a bound of rows and bytes.

    The first row always enters, however large: a bound that nothing fits under would stop the job.

    Args:
        rows: Unfinished rows at most.
        bytes_: Bytes of their prompts at most.
    """

    def __init__(self, rows: int, bytes_: int = ADMITTED_BYTES) -> None:
        self._max_rows, self._max_bytes = rows, bytes_
        self.rows = 0
        self.bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Rows that wait to be let in."""
        return len(self._waiting)

    async def enter(self, size: int) -> None:
        """Wait for a place for one row of `size` bytes; every `enter` needs its `leave`."""
        if not self._waiting and self._fits(size):
            self._take(size)
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave(size)  # let in and cancelled at once: hand the place on
            else:
                with suppress(ValueError):  # a leave has passed over it meanwhile
                    self._waiting.remove((size, place))
                self._let_in()
            raise

    def leave(self, size: int) -> None:
        """Give a row's place back."""
        self.rows -= 1
        self.bytes -= size
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, place = self._waiting.popleft()
            if not place.cancelled():
                self._take(size)
                place.set_result(None)

    def _fits(self, size: int) -> bool:
        return self.rows == 0 or (self.rows < self._max_rows and self.bytes + size <= self._max_bytes)

    def _take(self, size: int) -> None:
        self.rows += 1
        self.bytes += size
