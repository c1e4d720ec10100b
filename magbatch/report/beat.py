"""Repeated writes in a background thread that can neither delay nor fail a run."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BeatTiming:
    """Durations of repeated writes.

    Attributes:
        interval_s: Seconds between two writes.
        last_write_s: Seconds that the end of a run waits for a write that hangs.
    """

    interval_s: float = 5.0
    last_write_s: float = 30.0


@contextmanager
def repeated(
    name: str,
    write: Callable[[], None],
    write_last: Callable[[], None],
    failed: Callable[[Exception], None],
    timing: BeatTiming,
) -> Iterator[None]:
    """Call `write` in a thread, at once and then at intervals, while a block runs; call `write_last` at its end.

    Args:
        name: Name of the thread.
        write: Function to repeat. If it raises, the thread ends.
        write_last: Function to call once after the block. It is skipped if `write` still hangs by then.
        failed: Function that the thread calls with the exception that `write` raised.
        timing: Durations.
    """
    over = threading.Event()

    def beat() -> None:
        while True:
            try:
                write()
            except Exception as error:  # noqa: BLE001 - a thread's boundary: rows must not depend on this write
                failed(error)
                return
            if over.wait(timing.interval_s):
                return

    thread = threading.Thread(target=beat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timing.last_write_s)
        if not thread.is_alive():
            write_last()
