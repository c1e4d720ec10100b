"""The read task: it prepares neighbouring shards, and notes on the board which rows it reads.

A task runs in a Ray process on any node. A node with other package versions than the job's must not prepare prompts.
"""

import functools
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import ray

from magbatch.errors import JobError, StorageError
from magbatch.fleet.nodes import this_node
from magbatch.ledger.ledger import Ledger
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import StepsOfProcess, prepare
from magbatch.pipeline.reading import Deaths
from magbatch.rows import Shard
from magbatch.versions import versions

REFUSED_S = 5.0  # time for which a reader keeps its CPU on a node with other versions, so that Ray tries another node
_STEPS = StepsOfProcess()  # for all read tasks of this process


class BoardNotes:
    """The board's log of rows that are being read, as a reader uses it.

    Reading continues while the board cannot be reached. Nothing is noted then, and no deaths are known.

    Args:
        board: Ray's handle of the board.
    """

    def __init__(self, board: Any) -> None:
        self._board = board

    def begin(self, shard: int) -> Deaths:
        """Note that this reader starts on a shard; see `ReadLog.begin`."""
        try:
            deaths: Deaths = ray.get(self._board.reads.remote(shard))
        except ray.exceptions.ActorUnavailableError:
            return Deaths()
        return deaths

    def row(self, shard: int, row_id: str | None) -> None:
        """Note the row that this reader touches; see `ReadLog.row`."""
        with suppress(ray.exceptions.ActorUnavailableError):
            ray.get(self._board.reads_row.remote(shard, row_id))

    def end(self, shard: int) -> None:
        """Note that a shard is read; see `ReadLog.end`."""
        self._board.has_read.remote(shard)


def read_shards(
    job: JobContext,
    shards: list[Shard],
    may_have_rows: frozenset[int],
    board: Any,
    refused_s: float = REFUSED_S,
) -> Iterator[pa.Table]:
    """Prepare shards, as one of Ray Data's read tasks.

    Args:
        job: Spec and planned columns of the job.
        shards: Shards of the task, in the order of the plan.
        may_have_rows: Indices of shards that may have committed rows.
        board: Ray's handle of the board.
        refused_s: Seconds to keep the CPU of a node with other versions, before the process ends.

    Yields:
        The blocks of `prepare`.

    Raises:
        JobError: The job cannot continue; the board has the error already.
    """

    def on_wait(error: StorageError) -> None:
        board.input_refused.remote(f"the input's storage refuses, trying again: {error}")

    if (refusal := _refusal(board)) is not None:
        time.sleep(refused_s)
        ray.get(board.refuse_reader.remote(refusal))
        os._exit(1)  # Ray gives the task to another process, on another node if there is one
    try:
        ledger = Ledger(job.spec.output.path, job.spec.output.patience_s, on_wait, plan_id=job.plan_id)
        look_up = functools.partial(ledger.look_up, may_have_rows)
        steps = _STEPS.of(job.spec)
        yield from prepare(job, steps, shards, may_have_rows, look_up, on_wait, BoardNotes(board))
    except JobError as error:
        ray.get(board.failed.remote(error))
        raise


@functools.lru_cache(maxsize=1)
def _refusal(board: Any) -> str | None:
    """The reason why this node may not prepare prompts, or None. A process asks once, not for each task."""
    why: str | None = ray.get(board.differs.remote(this_node(), versions()))
    return why
