"""Shards enter a replica one after the other, each with the rows that are not committed yet."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from magbatch.ledger.ledger import Ledger
from magbatch.pipeline.block import ShardPrompts
from magbatch.replica.board import Board
from magbatch.replica.commits import Attempt
from magbatch.replica.timing import ZOMBIES_S

SHARDS_AHEAD = 4  # shards that the board knows before their turn, so that no turn waits for the board


class Entrance:
    """Gate that lets shards in, one at a time, in the order in which they come.

    Args:
        board: Board of the run, where attempts are registered.
        ledger: Ledger of the job's output, asked for committed rows.
        patience_s: Seconds that the output's storage may be away. A commit of a replaced run may be retried for this
            long and still succeed.
    """

    def __init__(self, board: Board, ledger: Ledger, patience_s: float) -> None:
        self._board, self._ledger = board, ledger
        self._near = asyncio.Semaphore(SHARDS_AHEAD)
        self._unpacking, self._turn = asyncio.Lock(), asyncio.Lock()
        self._unpacker = ThreadPoolExecutor(1)  # its own thread: a slow store may occupy the shared ones
        self._zombies_until = time.monotonic() + ZOMBIES_S + patience_s

    @asynccontextmanager
    async def enter(
        self,
        shard: int,
        unpack: Callable[[], ShardPrompts],
        begin: Callable[[ShardPrompts, frozenset[str]], Attempt],
        *,
        may_have_rows: bool,
    ) -> AsyncIterator[tuple[Attempt, dict[str, int]]]:
        """Wait for the turn of a shard, which ends with the context.

        A shard is unpacked while the shard before it has its turn, not earlier. So only one of the waiting shards takes
        memory.

        Args:
            shard: Index of the shard.
            unpack: Function that unpacks the shard's prompts, called in a thread.
            begin: Function that starts an attempt, given the prompts and the ids of the committed rows. Nothing here
                keeps the prompts after that.
            may_have_rows: Whether rows of the shard may have been committed before the run began.

        Yields:
            The attempt, and row id to strikes: engines that died with the row in flight.
        """
        async with AsyncExitStack() as turn:
            async with self._near:
                first, strikes = await self._board.begin(shard)
                async with self._unpacking:
                    prompts = await asyncio.get_running_loop().run_in_executor(self._unpacker, unpack)
                    del unpack
                    await turn.enter_async_context(self._turn)
            done = frozenset[str]()
            if may_have_rows or not first:  # asked this late because a replica of a replaced run may still commit
                quiet_since = self._zombies_until if first else math.inf
                done = await asyncio.to_thread(self._ledger.done_rows, shard, quiet_since)
            attempt = begin(prompts, done)
            del prompts
            yield attempt, strikes
