"""Finished rows of one replica -> committed objects, in the order in which the rows finish.

A row stays here until the store has it. What the store refuses is kept and tried again; a row that no object can
hold becomes a dead letter, and holds up no other.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from magbatch.errors import StorageError
from magbatch.pipeline.write import ObjectWriter, Written
from magbatch.replica.board import COMMIT_BOUNDS_S, Usage
from magbatch.replica.watchdog import Background, Holding
from magbatch.rows import DeadLetter, FinishedRow, Prompt
from magbatch.spec import OutputSpec
from magbatch.totals import Totals, bucket

COMMITS_AT_ONCE = 32  # up to 256 open shards commit every 5 s, and a store takes up to half a second
UNCOMMITTED_PER_SLOT = 8  # finished rows that may wait for the store before admission waits for it


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at a shard: finished rows wait here for their commit.

    Attributes:
        shard: The shard's number.
        writer: Writes the attempt's objects.
        finished: Answered rows that wait.
        letters: Dead letters that wait.
        row_ids: Ids of the attempt's rows: all of the shard, or of a piece of it.
        open: Rows that are not let into the engine yet.
        since: When the oldest row that waits was finished, by the monotonic clock (seconds).
        lock: Is held by the commit under way.
    """

    shard: int
    writer: ObjectWriter
    row_ids: frozenset[str] = frozenset()
    finished: list[FinishedRow] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    open: deque[Prompt] = field(default_factory=deque)
    since: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def waiting(self) -> int:
        """Rows that wait for their commit."""
        return len(self.finished) + len(self.letters)

    def add(self, row: FinishedRow | DeadLetter) -> None:
        """A row is finished."""
        if not self.waiting:
            self.since = time.monotonic()
        if isinstance(row, DeadLetter):
            self.letters.append(row)
        else:
            self.finished.append(row)


class Commits:
    """Commits what is finished, over all shards of a replica.

    Args:
        output: The spec's.
        slots: Rows that the engine works on at once.
        holding: The run's lease.
        background: Runs commits that nobody waits for.

    Attributes:
        attempts: Those under way.
    """

    def __init__(self, output: OutputSpec, slots: int, holding: Holding, background: Background) -> None:
        self._output, self._holding, self._background = output, holding, background
        self._most = max(UNCOMMITTED_PER_SLOT * slots, output.commit_rows)
        self._pool = ThreadPoolExecutor(COMMITS_AT_ONCE)
        self._ended = asyncio.Event()  # a commit has, or a stop asks for a look
        self._failure: StorageError | None = None  # of the last commit
        self._done, self._use = Totals(), Usage()
        self.attempts: set[Attempt] = set()

    async def commit(self, attempt: Attempt) -> None:
        """Commit what an attempt has finished so far.

        Raises:
            StorageError: The store refuses; what it does not have stays.
        """
        async with attempt.lock:
            finished, letters = len(attempt.finished), len(attempt.letters)
            try:
                if finished or letters:
                    await self._holding.confirm()
                while finished > 0:
                    written = await self._write(attempt, attempt.finished[:finished])
                    del attempt.finished[: written.taken]
                    attempt.letters += written.refused
                    finished, letters = finished - written.taken, letters + len(written.refused)
                while letters > 0:
                    written = await self._write(attempt, attempt.letters[:letters])
                    del attempt.letters[: written.taken]
                    letters -= written.taken
            except StorageError as error:
                self._failure = error
                raise
            finally:
                attempt.since = time.monotonic()
                self._ended.set()

    def soon(self, attempt: Attempt) -> None:
        """Commit in a task of its own: a commit under way is never cancelled half-way."""
        if attempt.waiting and not attempt.lock.locked():
            self._background.start(self._quietly(attempt))

    async def all(self) -> None:
        """Commit what is finished of every shard; what the store refuses is left to another attempt."""
        await asyncio.gather(*(self._quietly(attempt) for attempt in list(self.attempts)))

    async def room(self, stopping: Callable[[], bool]) -> None:
        """Wait while too many finished rows wait for the store.

        Args:
            stopping: Says whether nothing is to be waited for any more; see `wake`.

        Raises:
            StorageError: The store refused the last commit, and patience is over.
        """
        while not stopping():
            if self._failure is not None:
                raise self._failure
            if self.waiting < self._most:
                return
            self._ended.clear()
            for attempt in self.attempts:
                self.soon(attempt)
            await self._ended.wait()

    def wake(self) -> None:
        """Have `room` look again."""
        self._ended.set()

    @property
    def waiting(self) -> int:
        """Finished rows that wait for their commit."""
        return sum(attempt.waiting for attempt in self.attempts)

    def taken(self) -> tuple[Totals, Usage]:
        """What was committed, and what that took, since this was last asked."""
        taken = self._done, self._use
        self._done, self._use = Totals(), Usage()
        return taken

    async def _quietly(self, attempt: Attempt) -> None:
        # The refusal is kept: admission raises it, and the shard's own last commit tries once more.
        with suppress(StorageError):
            await self.commit(attempt)

    async def _write(self, attempt: Attempt, rows: list[FinishedRow] | list[DeadLetter]) -> Written:
        """Write one object, and count its rows."""
        began = time.monotonic()
        written = await asyncio.get_running_loop().run_in_executor(self._pool, attempt.writer.commit, rows)
        took = time.monotonic() - began
        self._failure = None
        committed = written.committed
        if committed is not None:
            self._done = self._done.plus(committed.totals)
            self._use.commits += 1
            self._use.commit_ms += round(1000 * took)
            self._use.commit_bytes += committed.bytes
            bucket(self._use.by_commit, [took], COMMIT_BOUNDS_S)
        return written
