"""Errors about temporary files name the setting that a person must change."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from magbatch.errors import StorageError

LEAST_BYTES = 1 << 20  # size of the trial file; Ray's session folder takes more within seconds


@contextmanager
def temporary_files(needed: str = "") -> Iterator[None]:
    """Raise an OSError of the block as an error that names TMPDIR.

    Args:
        needed: Space that is needed, in words for the message.

    Raises:
        StorageError: The block raised an OSError.
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
    """Write trial files where this process and a local Ray keep temporary files.

    Raises:
        StorageError: A trial file cannot be written.
    """
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
    except OSError:  # Python found no folder that can be written
        return os.environ.get("TMPDIR") or "/tmp"
