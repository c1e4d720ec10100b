"""Looks at stores, each in a thread of its own: a store that never answers holds up nobody else."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

ANSWER_S = 2.0  # to wait for looks that were just begun: nearly every store answers sooner
LATE_S = 30.0  # without an answer, after which a person is told
T = TypeVar("T")


class Look(Generic[T]):
    """One look, begun at once.

    Args:
        act: Looks.
        name: Of its thread, which ends with the process at the latest.
    """

    def __init__(self, act: Callable[[], T], name: str) -> None:
        self._act = act
        self._began = time.monotonic()
        self._over = threading.Event()
        self._found: T | None = None
        self._error: Exception | None = None
        self.late_is_said = False
        threading.Thread(target=self._run, name=f"look at {name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._found = self._act()
        except Exception as error:  # noqa: BLE001 - a thread's boundary: who asks for the result gets it
            self._error = error
        finally:
            self._over.set()

    @property
    def is_over(self) -> bool:
        """Whether there is a result."""
        return self._over.is_set()

    @property
    def is_late(self) -> bool:
        """Whether the store has not answered for `LATE_S`."""
        return not self.is_over and time.monotonic() - self._began >= LATE_S

    def result(self) -> T:
        """What was seen; raises what the look raised. Only after it is over."""
        if self._error is not None:
            raise self._error
        return self._found  # type: ignore[return-value]

    def wait(self, until: float) -> None:
        """Wait for its end, until a moment of the monotonic clock (seconds)."""
        self._over.wait(max(0.0, until - time.monotonic()))


def wait_for(looks: "Iterable[Look[Any]]", seconds: float) -> None:
    """Wait until all looks are over, or some seconds have passed."""
    until = time.monotonic() + seconds
    for look in looks:
        look.wait(until)
