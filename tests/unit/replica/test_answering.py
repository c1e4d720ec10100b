"""Whatever goes wrong with a row alone is its dead letter; a dead engine is not."""

import asyncio
import time
from typing import cast

import pytest

from magbatch.errors import ClusterError, EngineDeadError, ErrorCode, RowError, Step
from magbatch.pipeline.answer import Progress, Pulse, RowAnswerer
from magbatch.replica.answering import Answering
from magbatch.rows import DeadLetter, Prompt, as_ids

PROMPT = Prompt("row", as_ids([1]))


class PanicException(BaseException):
    """A panic of a library in Rust, by its name."""


class Scripted:
    """A step that fails in one way, or waits without end, inside a request."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def progress(self, pulse: Pulse) -> Progress:
        return Progress(pulse)

    async def __call__(self, prompt: Prompt, progress: Progress) -> None:
        with progress.pulse():
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()


def answering(error: BaseException | None, row_timeout_s: float | None = None) -> Answering:
    return Answering(cast(RowAnswerer, Scripted(error)), row_timeout_s)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RowError(ErrorCode.ANSWER_INVALID, "no number", answer="x"), ErrorCode.ANSWER_INVALID, "no number"),
        (OverflowError("too large"), ErrorCode.INTERNAL, "OverflowError: too large"),
        (PanicException("unreachable"), ErrorCode.INTERNAL, "PanicException: unreachable"),
    ],
)
def test_an_error_of_a_row_is_its_dead_letter(error: BaseException, code: ErrorCode, message: str) -> None:
    letter = asyncio.run(answering(error)(0, PROMPT))
    assert isinstance(letter, DeadLetter)
    assert (letter.row_id, letter.step, letter.code, letter.message) == ("row", Step.GENERATE, code, message)
    assert letter.answer == ("x" if isinstance(error, RowError) else None)


@pytest.mark.parametrize("error", [EngineDeadError("gone"), ClusterError("no sandbox"), KeyboardInterrupt()])
def test_an_error_of_the_engine_or_the_cluster_is_raised(error: BaseException) -> None:
    with pytest.raises(type(error)):
        asyncio.run(answering(error)(0, PROMPT))


def test_a_row_that_hangs_is_a_dead_letter() -> None:
    async def play() -> None:
        asking = answering(None, row_timeout_s=0.02)
        hanging = asyncio.create_task(asking(4, PROMPT))
        await asyncio.sleep(0.015)
        assert asking.in_flight.by_shard() == {4: ["row"]}
        with asking.in_flight.watch(asking.in_flight.enter(4, "busy")) as beat:
            beat()  # a younger row has its first token
            assert not asking.in_flight.check(time.monotonic() + 0.01)
            letter = await hanging
        assert isinstance(letter, DeadLetter)
        assert (letter.row_id, letter.code) == ("row", ErrorCode.ROW_TIMEOUT)
        assert "limits.row_timeout_s" in letter.message

    asyncio.run(play())


def test_a_row_that_is_cancelled_leaves_without_an_outcome() -> None:
    async def play() -> None:
        asking = answering(None)
        cancelled = asyncio.create_task(asking(4, PROMPT))
        await asyncio.sleep(0)
        assert len(asking.in_flight) == 1
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        assert cancelled.cancelled()
        assert len(asking.in_flight) == 0

    asyncio.run(play())
