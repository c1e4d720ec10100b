"""Requests to the engine: each is cut to the room in its context, and made again if the engine fails it."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from magbatch.engines.base import UNCONSTRAINED, Engine, RequestShape
from magbatch.errors import ErrorCode, RequestFailedError, RequestRejectedError, RowError
from magbatch.pipeline.repetition import RepetitionGuard
from magbatch.rows import Generation, Prompt

REQUEST_TRIES = 3  # tries of a request that fails inside the engine; vLLM fails some that need an image again

OnNew = Callable[[int, Sequence[int]], None]
"""Callback for new tokens: the number of the sample, and its new token ids."""

RequestMonitor = Callable[[RequestShape], AbstractContextManager[OnNew]]
"""Context of one request: entered with the request's shape, it gives a callback for the tokens as they arrive."""


@contextmanager
def unwatched(shape: RequestShape) -> Iterator[OnNew]:
    """A monitor that ignores the tokens."""
    yield lambda sample, new: None


class Requests:
    """Sender of requests to one engine.

    Args:
        engine: Engine to which the requests go.
        max_model_len: Tokens that the engine can hold for one row, prompt included.
        repetition_tokens: Tokens of pure repetition after which a sample is ended; None for no limit.
    """

    def __init__(self, engine: Engine, max_model_len: int, repetition_tokens: int | None) -> None:
        self._engine, self._max_model_len, self._repetition_tokens = engine, max_model_len, repetition_tokens

    async def __call__(
        self,
        prompt: Prompt,
        max_tokens: int,
        seed: int | None,
        watch: RequestMonitor,
        shape: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        """Make one request; a request that fails inside the engine is made again.

        Args:
            prompt: Token ids and images.
            max_tokens: Tokens of a sample; cut to the room that the context leaves.
            seed: Seed of the request; None leaves it to the engine.
            watch: Monitor that is entered for each try.
            shape: Shape of the request.

        Raises:
            RowError: `engine_rejected`; `prompt_too_long` if the context leaves no room.
            EngineDeadError: The engine is gone.
        """
        limit = min(max_tokens, self._max_model_len - len(prompt.token_ids))
        if limit < 1:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG, f"max_model_len = {self._max_model_len} leaves no room for an answer"
            )
        began = time.monotonic()
        failed: RequestFailedError | None = None
        # A plain loop: tenacity costs time on the path of every row, and there is nothing to wait for.
        for _ in range(REQUEST_TRIES):
            try:
                generation = await self._try(prompt, limit, seed, watch, shape)
            except RequestFailedError as error:
                failed = error
            except RequestRejectedError as error:
                raise RowError(ErrorCode.ENGINE_REJECTED, str(error)) from error
            else:
                return generation if failed is None else replace(generation, latency_s=time.monotonic() - began)
        raise RowError(
            ErrorCode.ENGINE_REJECTED, f"the engine failed the request {REQUEST_TRIES} times: {failed}"
        ) from failed

    async def _try(
        self, prompt: Prompt, max_tokens: int, seed: int | None, watch: RequestMonitor, shape: RequestShape
    ) -> Generation:
        guard = RepetitionGuard(self._repetition_tokens)  # new for each try: tokens of an earlier try do not count
        with watch(shape) as observe:

            def on_tokens(sample: int, new: Sequence[int]) -> bool:
                observe(sample, new)
                return guard(sample, new)

            return await self._engine.generate(
                prompt, max_tokens=max_tokens, seed=seed, on_tokens=on_tokens, form=shape
            )
