"""Temporary files, of which a machine may have no room, or no folder: said as what a person has to mend."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from magbatch.errors import StorageError

LEAST_BYTES = 1 << 20  # Ray's session folder alone takes more within its first seconds


@contextmanager
def temporary_files(needed: str = "") -> Iterator[None]:
    """Raise what the disk of temporary files refuses as a mistake to mend.

    Args:
        needed: How much room is needed, for the message.

    Raises:
        StorageError: The block met an OSError.
    """
    try:
        yield
    except OSError as error:
        room = f"make room there{f' ({needed})' if needed else ''}"
        raise StorageError(
            f"TMPDIR: temporary files in {_folder()}: {error.strerror or error}; {room}, or set TMPDIR to another "
            "folder"
        ) from error


def check_temporary_files() -> None:
    """Raises StorageError if temporary files, those of a local Ray among them, cannot be written."""
    with temporary_files(), tempfile.TemporaryFile(buffering=0) as file:
        file.write(bytes(LEAST_BYTES))
    of_ray = os.environ.get("RAY_TMPDIR")
    if of_ray is None:
        return
    try:
        os.makedirs(of_ray, exist_ok=True)
        with tempfile.TemporaryFile(buffering=0, dir=of_ray) as file:
            file.write(bytes(LEAST_BYTES))
    except OSError as error:
        raise StorageError(
            f"RAY_TMPDIR={of_ray}: {error.strerror or error}; set it to a folder that can be written, with room"
        ) from error


def _folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # no folder that Python looks at can be written
        return os.environ.get("TMPDIR") or "/tmp"
