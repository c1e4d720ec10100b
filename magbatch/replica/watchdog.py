"""What watches over a replica from inside: tasks that must never end by themselves, and the run's lease."""

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

from magbatch.errors import LeaseError, StorageError
from magbatch.ledger.holder import EXPIRY_S, LeaseToken
from magbatch.storage.patience import patiently

HOLD_INTERVAL_S = 5.0


class Background:
    """Tasks beside the rows. None of them ends without a word: the first error that one raises is handed on.

    Args:
        on_error: Is given what a task raised, once; the traceback is on stderr by then.
    """

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        self._on_error = on_error
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = False

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task until it ends."""
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
            self._on_error(error)


def deathless(name: str, work: Callable[[], None], die: Callable[[], None]) -> threading.Thread:
    """Run a thread without which the process must not go on.

    Args:
        name: The thread's name.
        work: Returns when its time is over.
        die: Ends this process, if `work` raises instead; the traceback is on stderr by then.
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


class Holding:
    """Whether the run still has its output: a replica whose run was taken over is a zombie, and commits no more.

    Args:
        hold: The run's lease; None if nobody else can take the output.
        patience_s: Seconds that the store may be away before a commit gives up.
        on_wait: Is called with each refusal that is waited out.
        die: Ends this process.
        interval_s: Seconds between two looks.
        expiry_s: Seconds after a look until a commit needs another.
    """

    def __init__(
        self,
        hold: LeaseToken | None,
        patience_s: float,
        on_wait: Callable[[StorageError], None],
        die: Callable[[], None],
        *,
        interval_s: float = HOLD_INTERVAL_S,
        expiry_s: float = EXPIRY_S,
    ) -> None:
        self._hold, self._patience_s, self._on_wait, self._die = hold, patience_s, on_wait, die
        self._interval_s, self._expiry_s = interval_s, expiry_s
        self._seen = time.monotonic()  # when the lease was last seen to be the run's
        self._looking = asyncio.Lock()

    async def watch(self) -> None:
        """Look every few seconds, for as long as the process lives."""
        while self._hold is not None:
            await asyncio.sleep(self._interval_s)
            try:
                await self._look(0.0)
            except StorageError:
                continue  # the next look tells; until then, commits wait for one that goes well

    async def confirm(self) -> None:
        """Make sure, before a commit, that the lease was the run's a moment ago.

        Raises:
            StorageError: It cannot be seen, and patience is over.
            LeaseError: Another run has the output, and `die` came back.
        """
        if self._is_stale():
            async with self._looking:  # one look is enough for all commits that wait
                if self._is_stale():
                    await self._look(self._patience_s)

    def _is_stale(self) -> bool:
        return self._hold is not None and time.monotonic() - self._seen > self._expiry_s

    async def _look(self, patience_s: float) -> None:
        assert self._hold is not None
        began = time.monotonic()
        if await asyncio.to_thread(patiently, self._hold.is_lost, patience_s, self._on_wait):
            self._die()
            raise LeaseError(f"{self._hold.root}: another run has taken the output over")
        self._seen = began
