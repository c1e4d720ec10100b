"""Output of native code, libraries and child processes goes to a file instead of the terminal."""

import fcntl
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from magbatch.temporary import temporary_files
from magbatch.terminal import uncoloured, visible

TAIL_BYTES = 200_000
MAX_BYTES = 20_000_000  # largest file of a capture, which may last for days
STDOUT, STDERR = 1, 2


@dataclass(frozen=True, slots=True)
class Captured:
    """A capture in progress.

    Attributes:
        file: Temporary file that holds the output.
    """

    file: IO[bytes]

    def text(self) -> str:
        """Last 200 kB of the output so far."""
        size = os.fstat(self.file.fileno()).st_size
        return os.pread(self.file.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")

    def bound(self) -> None:
        """Cut a long capture to its end; output that arrives during the cut may be lost."""
        if os.fstat(self.file.fileno()).st_size > MAX_BYTES:
            last = self.text().encode()
            os.ftruncate(self.file.fileno(), 0)
            with suppress(OSError):  # the disk may have been full; the cut has made room
                os.write(self.file.fileno(), last)


_open: list[Captured] = []
_followers: list[Callable[[str], None]] = []


def last_words(lines: int = 3) -> str:
    """Last lines of the innermost capture in progress; empty if nothing was printed."""
    said = _open[-1].text().split("\n") if _open else []
    return "\n".join([line for line in map(str.strip, said) if line][-lines:])


@contextmanager
def captured(*descriptors: int, replay: bool) -> Iterator[Captured]:
    """Capture file descriptors of this process, and of children that it starts within the block.

    Args:
        descriptors: `STDOUT`, `STDERR` or both.
        replay: Whether the output goes to the real stderr at the end.
    """
    with temporary_files():
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the block below
    with file:
        # With O_APPEND every process writes at the end of the file, even after a cut.
        fcntl.fcntl(file.fileno(), fcntl.F_SETFL, fcntl.fcntl(file.fileno(), fcntl.F_GETFL) | os.O_APPEND)
        _flush()
        saved = {descriptor: os.dup(descriptor) for descriptor in descriptors}
        for descriptor in descriptors:
            os.dup2(file.fileno(), descriptor)
        capture = Captured(file)
        _open.append(capture)
        try:
            yield capture
        finally:
            _open.remove(capture)
            _flush()
            for descriptor, original in saved.items():
                os.dup2(original, descriptor)
                os.close(original)
            for take in _followers:
                take(capture.text())
            if replay:
                os.write(STDERR, visible(uncoloured(capture.text())).encode())


@contextmanager
def follow_captures(take: Callable[[str], None]) -> Iterator[None]:
    """Hand the last text of each capture that ends within a block to a function.

    Args:
        take: Function that is called at the end of each capture, in its thread.
    """
    _followers.append(take)
    try:
        yield
    finally:
        _followers.remove(take)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the disk of temporary files is full, or the reader is gone
            stream.flush()


@contextmanager
def threads_told(say: Callable[[str], None]) -> Iterator[None]:
    """Report an exception of any thread in one line; its traceback still goes to the former hook.

    Args:
        say: Function that shows one line to a person.
    """
    before = threading.excepthook

    def tell(args: threading.ExceptHookArgs) -> None:
        name = "gone" if args.thread is None else args.thread.name
        say(f"the thread {name!r} has ended: {args.exc_type.__name__}: {args.exc_value}")
        before(args)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before
