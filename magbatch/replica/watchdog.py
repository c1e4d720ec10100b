"""Guards inside a replica: tasks and threads that never fail silently, and a watch on the run's lease."""

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from magbatch.errors import LeaseError, StorageError
from magbatch.ledger.holder import LeaseToken
from magbatch.replica.timing import Timing
from magbatch.storage.patience import patiently


class Background:
    """Background tasks of a replica. The first error that a task raises is passed on, so that none fails silently.

    Attributes:
        on_error: Callback for the first error, called once, after its traceback was printed to stderr. None until the
            part that ends the replica is made, which needs these tasks itself; no task starts before.
    """

    def __init__(self, on_error: Callable[[Exception], None] | None = None) -> None:
        self.on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = False

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task, and keep it until it ends."""
        assert self.on_error is not None, "an error of the task would be lost"
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not self._failed:
            self._failed = True
            traceback.print_exception(error)
            assert self.on_error is not None
            self.on_error(error)


def deathless(name: str, work: Callable[[], None], die: Callable[[], None]) -> threading.Thread:
    """Start a thread that the process cannot do without.

    Args:
        name: Name of the thread in tracebacks.
        work: Function that the thread runs. It may return; an error that it raises ends the process.
        die: Callback that ends this process, called after the traceback was printed to stderr.
    """

    def run() -> None:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            die()
            raise

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


class LeaseWatch:
    """Watch on the run's lease. A replica whose run was taken over is a zombie and must not commit.

    Args:
        token: Token of the run's lease; None if no other run can take the output.
        patience_s: Seconds that the store may be away before a commit gives up.
        on_wait: Callback for each refusal of the store that is waited out.
        die: Callback that ends this process.
        timing: Interval of the checks and age at which a check expires, in seconds.
    """

    def __init__(
        self,
        token: LeaseToken | None,
        patience_s: float,
        on_wait: Callable[[StorageError], None],
        die: Callable[[], None],
        timing: Timing,
    ) -> None:
        self._token, self._patience_s, self._on_wait, self._die = token, patience_s, on_wait, die
        self._timing = timing
        self._confirmed = time.monotonic()  # start of the last check that found the lease to be the run's
        self._checking = asyncio.Lock()

    async def watch(self) -> None:
        """Check the lease every few seconds, for as long as the process lives."""
        while self._token is not None:
            await asyncio.sleep(self._timing.lease_interval_s)
            try:
                await self._check(0.0)
            except StorageError:
                continue  # the next check may succeed; until then, commits make their own

    async def confirm(self) -> None:
        """Make sure, before a commit, that the lease was the run's a moment ago.

        Raises:
            StorageError: The lease cannot be read, and patience is over.
            LeaseError: Another run has the output, and `die` returned.
        """
        if self._is_stale():
            async with self._checking:  # one check is enough for all commits that wait
                if self._is_stale():
                    await self._check(self._patience_s)

    def _is_stale(self) -> bool:
        return self._token is not None and time.monotonic() - self._confirmed > self._timing.lease_expiry_s

    async def _check(self, patience_s: float) -> None:
        assert self._token is not None
        began = time.monotonic()
        if await asyncio.to_thread(patiently, self._token.is_lost, patience_s, self._on_wait):
            self._die()
            raise LeaseError(f"{self._token.root}: another run has taken over the output")
        self._confirmed = began
