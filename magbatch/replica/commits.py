"""Finished rows of a replica -> committed objects, in the order in which the rows finish.

A row stays here until the store has it: rows that the store refuses are tried again. A row that no object can hold
becomes a dead letter and does not hold up the other rows.
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
from magbatch.replica.watchdog import Background, LeaseWatch
from magbatch.rows import DeadLetter, FinishedRow, Prompt
from magbatch.spec import OutputSpec
from magbatch.totals import Totals, bucket

COMMITS_AT_ONCE = 32  # commits under way; 256 open shards that commit every 5 s, 0.5 s each, need 26
UNCOMMITTED_PER_SLOT = 8  # finished rows that may wait for a slow store; beyond that no row enters: bounds memory


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt at a shard, or at a piece of a shard: its finished rows wait here for their commit.

    Attributes:
        shard: Index of the shard.
        writer: Writer of the attempt's objects.
        row_ids: Ids of the attempt's rows.
        finished: Answered rows that wait for their commit.
        letters: Dead letters that wait for their commit.
        open: Rows that have not entered the engine yet.
        since: Time (monotonic, s) at which the oldest waiting row finished.
        lock: Lock that the commit under way holds.
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
        """Take a finished row."""
        if not self.waiting:
            self.since = time.monotonic()
        if isinstance(row, DeadLetter):
            self.letters.append(row)
        else:
            self.finished.append(row)


class Commits:
    """Queue of finished rows and their commits, over all shards of a replica.

    Args:
        output: The spec's section `output`.
        slots: Rows that the engine works on at once.
        lease: Watch on the run's lease.
        background: Tasks of the replica, for commits that run without a caller waiting for them.

    Attributes:
        attempts: Attempts under way.
    """

    def __init__(self, output: OutputSpec, slots: int, lease: LeaseWatch, background: Background) -> None:
        self._lease, self._background = lease, background
        self._most = max(UNCOMMITTED_PER_SLOT * slots, output.commit_rows)
        self._pool = ThreadPoolExecutor(COMMITS_AT_ONCE)
        self._changed = asyncio.Event()  # set when a commit has ended, and by `wake`
        self._failure: StorageError | None = None  # error of the last commit; None if it went well
        self._done, self._usage = Totals(), Usage()
        self.attempts: set[Attempt] = set()

    async def commit(self, attempt: Attempt) -> None:
        """Commit the rows that an attempt has finished so far.

        Raises:
            StorageError: The store refuses; rows that it does not have stay in the attempt.
        """
        async with attempt.lock:
            finished, letters = len(attempt.finished), len(attempt.letters)
            try:
                if finished or letters:
                    await self._lease.confirm()
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
                self._changed.set()

    def commit_soon(self, attempt: Attempt) -> None:
        """Commit in a background task, unless a commit is under way. A cancelled row then never cancels a commit."""
        if attempt.waiting and not attempt.lock.locked():
            self._background.start(self._quietly(attempt))

    async def commit_all(self) -> None:
        """Commit the finished rows of all shards; rows that the store refuses are left to another attempt."""
        await asyncio.gather(*(self._quietly(attempt) for attempt in list(self.attempts)))

    async def wait_for_room(self, is_stopped: Callable[[], bool]) -> None:
        """Wait while too many finished rows wait for the store.

        Args:
            is_stopped: Whether to return at once because the replica was stopped. Call `wake` when it changes.

        Raises:
            StorageError: The store refused the last commit, and patience is over.
        """
        while not is_stopped():
            if self._failure is not None:
                raise self._failure
            if self.waiting < self._most:
                return
            self._changed.clear()
            for attempt in self.attempts:
                self.commit_soon(attempt)
            await self._changed.wait()

    def wake(self) -> None:
        """Make `wait_for_room` check `is_stopped` again."""
        self._changed.set()

    async def watch_lease(self) -> None:
        """Check the run's lease every few seconds, for as long as the process lives."""
        await self._lease.watch()

    @property
    def waiting(self) -> int:
        """Finished rows that wait for their commit."""
        return sum(attempt.waiting for attempt in self.attempts)

    def take_counts(self) -> tuple[Totals, Usage]:
        """Committed rows, and the usage of their commits, since the last call."""
        counts = self._done, self._usage
        self._done, self._usage = Totals(), Usage()
        return counts

    async def _quietly(self, attempt: Attempt) -> None:
        # The error is not lost: admission raises it, and the shard's own last commit tries once more.
        with suppress(StorageError):
            await self.commit(attempt)

    async def _write(self, attempt: Attempt, rows: list[FinishedRow] | list[DeadLetter]) -> Written:
        """Write an object, and count its rows."""
        began = time.monotonic()
        written = await asyncio.get_running_loop().run_in_executor(self._pool, attempt.writer.commit, rows)
        took = time.monotonic() - began
        self._failure = None
        committed = written.committed
        if committed is not None:
            self._done = self._done.plus(committed.totals)
            self._usage.commits += 1
            self._usage.commit_ms += round(1000 * took)
            self._usage.commit_bytes += committed.bytes
            bucket(self._usage.by_commit, [took], COMMIT_BOUNDS_S)
        return written
