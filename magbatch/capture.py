"""What native code, libraries and child processes print, kept instead of shown."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

TAIL_BYTES = 200_000
STDOUT, STDERR = 1, 2


@dataclass(frozen=True, slots=True)
class Captured:
    """A capture in progress."""

    file: IO[bytes]

    def text(self) -> str:
        """The last of what was printed so far."""
        size = os.fstat(self.file.fileno()).st_size
        return os.pread(self.file.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")


_open: list[Captured] = []


def last_words(lines: int = 3) -> str:
    """The last lines of the innermost capture in progress; empty where nothing was said."""
    said = _open[-1].text().split("\n") if _open else []
    return "\n".join([line for line in map(str.strip, said) if line][-lines:])


@contextmanager
def captured(*descriptors: int, replay: bool) -> Iterator[Captured]:
    """Capture file descriptors of this process and of the children it starts meanwhile.

    Args:
        descriptors: `STDOUT`, `STDERR` or both.
        replay: Whether to write it all to the real stderr at the end.
    """
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = {descriptor: os.dup(descriptor) for descriptor in descriptors}
        for descriptor in descriptors:
            os.dup2(file.fileno(), descriptor)
        capture = Captured(file)
        _open.append(capture)
        try:
            yield capture
        finally:
            _open.remove(capture)
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, original in saved.items():
                os.dup2(original, descriptor)
                os.close(original)
            if replay:
                os.write(STDERR, capture.text().encode())
