"""Requests are cut to the room of their context, and made again if the engine fails them."""

import asyncio

import pytest

from magbatch.engines.base import UNCONSTRAINED, EngineLoad, OnTokens, RequestShape
from magbatch.errors import ErrorCode, RequestFailedError, RowError
from magbatch.pipeline.request import REQUEST_TRIES, Requests, unwatched
from magbatch.rows import Completion, Generation, Prompt, as_ids


class Engine:
    """An engine whose first requests fail."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.asked: list[int] = []

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        self.asked.append(max_tokens)
        if len(self.asked) <= self.failures:
            raise RequestFailedError("the image is gone")
        return Generation([Completion([1], "stop")], 0, 0.0)

    def load(self) -> EngineLoad:
        return EngineLoad()

    def shutdown(self) -> None:
        return


def request(engine: Engine, tokens: int, max_tokens: int) -> Generation:
    requests = Requests(engine, 100, None)
    return asyncio.run(requests(Prompt("row", as_ids([5] * tokens)), max_tokens, None, unwatched))


def test_a_request_gets_no_more_tokens_than_the_context_has() -> None:
    engine = Engine()
    request(engine, 60, 30)
    request(engine, 90, 30)
    assert engine.asked == [30, 10]


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    engine = Engine()
    with pytest.raises(RowError) as caught:
        request(engine, 100, 30)
    assert caught.value.code is ErrorCode.PROMPT_TOO_LONG
    assert not engine.asked


def test_a_failed_request_is_made_again_a_few_times() -> None:
    engine = Engine(REQUEST_TRIES - 1)
    assert request(engine, 10, 30).completions == [Completion([1], "stop")]
    with pytest.raises(RowError, match="3 times: the image is gone"):
        request(Engine(REQUEST_TRIES), 10, 30)
