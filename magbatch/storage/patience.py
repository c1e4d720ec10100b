"""Storage that refuses for a while is waited out."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from magbatch.errors import StorageError
from magbatch.storage.base import ObjectInfo, Store

PATIENT_WAIT_S = 15.0  # at most, between two tries of a patient store
LIST_PAGE = 1000
T = TypeVar("T")


class PatientStore:
    """A store that waits out what may pass by itself, with growing waits and jitter.

    Args:
        store: Is tried again.
        patience_s: Seconds that one operation may be refused before its error goes up.
        on_wait: Is called with each refusal that is waited out.
    """

    def __init__(self, store: Store, patience_s: float, on_wait: Callable[[StorageError], None] | None = None) -> None:
        self.root = store.root
        self._store = store
        self.patience_s = patience_s
        self._on_wait = on_wait

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        return self._try(lambda: self._store.read(name))

    def read_end(self, name: str, size: int) -> bytes:
        """See `Store.read_end`."""
        return self._try(lambda: self._store.read_end(name, size))

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        self._try(lambda: self._store.write(name, data))

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        return self._try(lambda: self._store.create(name, data))

    def replace(self, name: str, data: bytes, old: bytes) -> bool:
        """See `Store.replace`."""
        return self._try(lambda: self._store.replace(name, data, old))

    def keeps_conditions(self, name: str, data: bytes) -> bool:
        """See `Store.keeps_conditions`."""
        return self._try(lambda: self._store.keeps_conditions(name, data))

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """See `Store.list`. A listing that breaks off goes on after the last name that was given."""
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
        """See `Store.move`."""
        self._try(lambda: self._store.move(name, target))

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        self._try(lambda: self._store.delete(name))

    def _try(self, operation: Callable[[], T]) -> T:
        return patiently(operation, self.patience_s, self._on_wait)


def patiently(
    operation: Callable[[], T], patience_s: float, on_wait: Callable[[StorageError], None] | None = None
) -> T:
    """Try something again while storage refuses it in a way that may pass, with growing waits and jitter.

    Args:
        operation: May be done more than once.
        patience_s: Seconds that it may be refused before its error goes up.
        on_wait: Is called with each refusal that is waited out; what it raises ends the waiting.
    """

    def waiting(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if on_wait is not None and isinstance(error, StorageError):
            on_wait(error)

    jitter = wait_random_exponential(multiplier=0.5, max=PATIENT_WAIT_S)

    def wait(state: RetryCallState) -> float:
        left = patience_s - (state.seconds_since_start or 0.0)
        return max(0.0, min(jitter(state), left))  # the last try is when patience ends

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, StorageError) and not error.lasting),
        wait=wait,
        stop=stop_after_delay(patience_s),
        before_sleep=waiting,
        reraise=True,
    )(operation)
