"""Looks at object stores, each in a thread of its own: a store that never answers delays no other schedule."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Look(Generic[T]):
    """A look at a store, which starts when the object is made.

    Args:
        act: Function that reads from the store.
        name: Name of the thread. The thread ends with the process at the latest.
        late_s: Time without an answer after which the look is late (seconds).
    """

    def __init__(self, act: Callable[[], T], name: str, late_s: float) -> None:
        self._act, self._late_s = act, late_s
        self._began = time.monotonic()
        self._over = threading.Event()
        self._found: T | None = None
        self._error: Exception | None = None
        self.late_is_said = False
        threading.Thread(target=self._run, name=f"look at {name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._found = self._act()
        except Exception as error:  # noqa: BLE001 - a thread's boundary: `result` raises the error
            self._error = error
        finally:
            self._over.set()

    @property
    def is_over(self) -> bool:
        """Whether the store has answered or failed."""
        return self._over.is_set()

    @property
    def is_late(self) -> bool:
        """Whether the store has not answered in time."""
        return not self.is_over and time.monotonic() - self._began >= self._late_s

    def result(self) -> T:
        """Result of the look; raises the error of the look. Call it only after the look is over."""
        if self._error is not None:
            raise self._error
        return self._found  # type: ignore[return-value]

    def wait(self, until: float) -> None:
        """Wait for the end of the look.

        Args:
            until: Time to stop waiting (monotonic clock, seconds).
        """
        self._over.wait(max(0.0, until - time.monotonic()))


def wait_for(looks: "Iterable[Look[Any]]", seconds: float) -> None:
    """Wait until all looks are over.

    Args:
        looks: The looks.
        seconds: Longest wait for all of them together.
    """
    until = time.monotonic() + seconds
    for look in looks:
        look.wait(until)
