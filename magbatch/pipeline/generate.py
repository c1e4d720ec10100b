"""Prompt -> tokens, in a vLLM replica.

Two promises. A row's sampling depends on the job's seed and the row's id alone: neither order nor
resume changes what is asked of the engine. And the engine always has work at hand, while memory
stays bounded: admission counts unfinished rows and their bytes, over all shards of the replica.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from magbatch.engines.base import Engine
from magbatch.errors import ErrorCode, RequestRejectedError, RowError
from magbatch.rows import Generation, Prompt
from magbatch.spec import SamplingSpec

ADMITTED_PER_SLOT = 2  # a slot that falls free finds its next row waiting in the engine
LEAST_REPEATS = 4  # of a pattern, before it counts as repetition
ADMITTED_BYTES = 2 << 30  # an image of 1540 x 1540 pixels is 7 MB; 300 of them


def row_seed(seed: int | None, row_id: str) -> int | None:
    """The engine's seed for one row: 63 bits of BLAKE2b over the job's seed and the row's id."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def repeats_itself(tokens: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> bool:
    """Whether tokens are one pattern over and over, at least `LEAST_REPEATS` times."""
    # The last token stands a pattern's length before the end too: few lengths are left to compare whole.
    lengths = 1 + np.flatnonzero(tokens[-2 : -2 - len(tokens) // LEAST_REPEATS : -1] == tokens[-1])
    return any(bool((tokens[length:] == tokens[:-length]).all()) for length in lengths)


class RepetitionGuard:
    """Notices a sample that only repeats itself.

    vLLM has such a check, made for every token of every row inside the engine; here it is made for
    every chunk of tokens, outside. It looks at exact repetition only.

    Args:
        tokens: How many tokens of pure repetition are enough; None never is.
    """

    def __init__(self, tokens: int | None) -> None:
        self._tokens = tokens
        self._tails: dict[int, list[int]] = {}

    def __call__(self, sample: int, new: Sequence[int]) -> bool:
        """See `OnTokens`: False for a sample that has repeated itself for long enough."""
        if self._tokens is None:
            return True
        tail = self._tails.setdefault(sample, [])
        tail += new
        del tail[: -self._tokens]
        return len(tail) < self._tokens or not repeats_itself(np.array(tail))


class Generate:
    """Asks the engine, one row at a time.

    Args:
        engine: Where the tokens come from.
        sampling: The job's sampling parameters.
        max_model_len: Tokens that the engine can hold for one row.
        repetition_tokens: Tokens of pure repetition after which a sample is ended; None never ends it.
    """

    def __init__(
        self, engine: Engine, sampling: SamplingSpec, max_model_len: int, repetition_tokens: int | None = None
    ) -> None:
        self._engine = engine
        self._sampling = sampling
        self._max_model_len = max_model_len
        self._repetition_tokens = repetition_tokens

    async def __call__(self, prompt: Prompt, pulse: Callable[[], None] = lambda: None) -> Generation:
        """All samples of one row.

        Args:
            prompt: The row.
            pulse: Is called whenever tokens of the row have come.

        Raises:
            RowError: `engine_rejected`.
            EngineDeadError: The engine is gone.
        """
        max_tokens = min(self._sampling.max_tokens, self._max_model_len - len(prompt.token_ids))
        guard = RepetitionGuard(self._repetition_tokens)

        def on_tokens(sample: int, new: Sequence[int]) -> bool:
            pulse()
            return guard(sample, new)

        try:
            return await self._engine.generate(
                prompt, max_tokens=max_tokens, seed=row_seed(self._sampling.seed, prompt.row_id), on_tokens=on_tokens
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
