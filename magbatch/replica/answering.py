"""A row in the engine. Its outcome is a finished row, or a dead letter for anything that goes wrong with it alone."""

import asyncio
import functools

from magbatch.errors import ClusterError, EngineDeadError, ErrorCode, RowError
from magbatch.pipeline.answer import RowAnswerer
from magbatch.replica.in_flight import InFlight
from magbatch.rows import DeadLetter, FinishedRow, Prompt


class Answering:
    """Step that answers rows, and notices if one of them hangs.

    Args:
        answerer: Asks, parses and checks a row.
        row_timeout_s: Seconds without a token after which a row hangs; None for no limit.

    Attributes:
        in_flight: Rows inside the engine.
    """

    def __init__(self, answerer: RowAnswerer, row_timeout_s: float | None) -> None:
        self._answerer, self._row_timeout_s = answerer, row_timeout_s
        self.in_flight = InFlight(row_timeout_s)

    async def __call__(self, shard: int, prompt: Prompt) -> FinishedRow | DeadLetter:
        """Answer a row of a shard.

        Raises:
            EngineDeadError: The engine is gone.
            ClusterError: The cluster cannot do the work, e.g. run a sandbox.
        """
        row = self.in_flight.enter(shard, prompt.row_id)
        progress = self._answerer.progress(functools.partial(self.in_flight.watch, row))
        try:
            return await self._answerer(prompt, progress)
        except (EngineDeadError, ClusterError):
            raise
        except asyncio.CancelledError:
            if not row.hangs:
                self.in_flight.leave(prompt.row_id)
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            message = f"the engine gave the row no token for {self._row_timeout_s:,.0f} s (limits.row_timeout_s)"
            return progress.letter(prompt.row_id, ErrorCode.ROW_TIMEOUT, message)
        except RowError as error:
            return progress.letter(prompt.row_id, error.code, error.message, error.answer)
        except BaseException as error:
            # A row's boundary: a defect must not stop its neighbours. A panic in Rust does not derive from `Exception`.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            return progress.letter(prompt.row_id, ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")
