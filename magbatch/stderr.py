"""What native code and child processes say on file descriptor 2, kept instead of shown."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

TAIL_BYTES = 200_000


@dataclass(frozen=True, slots=True)
class Captured:
    """A capture in progress."""

    file: IO[bytes]

    def text(self) -> str:
        """The last of what was said so far."""
        size = os.fstat(self.file.fileno()).st_size
        return os.pread(self.file.fileno(), TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")


@contextmanager
def captured(*, replay: bool) -> Iterator[Captured]:
    """Capture stderr of this process and of the children it starts meanwhile.

    Args:
        replay: Whether to write it all to the real stderr at the end.
    """
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        capture = Captured(file)
        try:
            yield capture
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            if replay:
                os.write(2, capture.text().encode())
