"""Repeat operations while storage refuses them for now.

A `StorageError` is retried unless it is `lasting`: an overloaded or silent store, a full disk, expired credentials,
a bucket that is away. Tries repeat with random, growing waits of up to 15 s until the caller's `patience_s` has
passed. Then the last error is raised. Errors that a person has to fix, and missing objects, are raised at once.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from magbatch.errors import StorageError
from magbatch.storage.base import ObjectInfo, Store

PATIENT_WAIT_S = 15.0  # longest wait between two tries: a store that is back is noticed soon, but not flooded
LIST_PAGE = 1000  # names per retried step of a listing; S3 returns this many per request
T = TypeVar("T")


class PatientStore:
    """A store that repeats a refused operation until it succeeds or its patience ends.

    Args:
        store: Store that carries out each try.
        patience_s: Seconds for which one operation may be refused before its error is raised.
        on_wait: Callback that receives each refusal before a wait.
    """

    def __init__(self, store: Store, patience_s: float, on_wait: Callable[[StorageError], None] | None = None) -> None:
        self.root = store.root
        self._store = store
        self.patience_s = patience_s
        self._on_wait = on_wait

    def read(self, name: str) -> bytes:
        """Return a whole object; see `Store.read`."""
        return self._try(lambda: self._store.read(name))

    def read_end(self, name: str, size: int) -> bytes:
        """Return the end of an object; see `Store.read_end`."""
        return self._try(lambda: self._store.read_end(name, size))

    def write(self, name: str, data: bytes) -> None:
        """Make an object visible; see `Store.write`."""
        self._try(lambda: self._store.write(name, data))

    def create(self, name: str, data: bytes) -> bool:
        """Make an object visible unless its name is taken; see `Store.create`."""
        return self._try(lambda: self._store.create(name, data))

    def replace(self, name: str, data: bytes, old: bytes) -> bool:
        """Replace an object with known content; see `Store.replace`."""
        return self._try(lambda: self._store.replace(name, data, old))

    def keeps_conditions(self, name: str, data: bytes) -> bool:
        """Test that the store honours conditions; see `Store.keeps_conditions`."""
        return self._try(lambda: self._store.keeps_conditions(name, data))

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """List objects; see `Store.list`. A listing that breaks off continues after its last name."""
        last = after
        items: Iterator[ObjectInfo] | None = None

        def page() -> list[ObjectInfo]:
            nonlocal items
            if items is None:
                items = self._store.list(prefix, last)
            try:
                return list(islice(items, LIST_PAGE))
            except StorageError:
                items = None
                raise

        while found := self._try(page):
            last = found[-1].name
            yield from found

    def move(self, name: str, target: str) -> None:
        """Rename an object; see `Store.move`."""
        self._try(lambda: self._store.move(name, target))

    def delete(self, name: str) -> None:
        """Remove an object; see `Store.delete`."""
        self._try(lambda: self._store.delete(name))

    def _try(self, operation: Callable[[], T]) -> T:
        return patiently(operation, self.patience_s, self._on_wait)


def patiently(
    operation: Callable[[], T], patience_s: float, on_wait: Callable[[StorageError], None] | None = None
) -> T:
    """Repeat an operation while storage refuses it and the refusal may pass, with random, growing waits.

    Args:
        operation: Callable that is safe to repeat.
        patience_s: Seconds for which it may be refused before its error is raised.
        on_wait: Callback that receives each refusal before a wait. An exception from it ends the waiting.
    """

    def waiting(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if on_wait is not None and isinstance(error, StorageError):
            on_wait(error)

    jitter = wait_random_exponential(multiplier=0.5, max=PATIENT_WAIT_S)

    def wait(state: RetryCallState) -> float:
        left = patience_s - (state.seconds_since_start or 0.0)
        return max(0.0, min(jitter(state), left))  # the last try comes at the very end of `patience_s`

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, StorageError) and not error.lasting),
        wait=wait,
        stop=stop_after_delay(patience_s),
        before_sleep=waiting,
        reraise=True,
    )(operation)
