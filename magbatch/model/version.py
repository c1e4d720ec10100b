"""The version of a checkpoint's files. A plan freezes it, and other files are refused."""

import json
from hashlib import sha256
from pathlib import Path

from magbatch.errors import ModelError, RowError, StorageError
from magbatch.model.files import ALL, SMALL, SUMMED
from magbatch.storage import open_store
from magbatch.storage.input_file import DiskFile


def must_be(source: str, frozen: str, found: str | None, *, weights: bool) -> None:
    """Compare two versions; without weights, only the checksum of the small files has to agree.

    Raises:
        ModelError: The files have another version than the frozen one.
    """
    if found == frozen or (found is not None and not weights and found.partition("-")[0] == frozen.partition("-")[0]):
        return
    raise ModelError(
        f"model.source {source}: its files have changed since the job was planned ({frozen} then, {found} now); "
        "bring the old files back, or run the spec into a new output"
    )


def _version(marks: dict[str, str]) -> str:
    """The version of a checkpoint, `sha256:A-B`.

    Args:
        marks: File name to a text that identifies the content: a checksum, or size and ETag.
    """

    def summed(of_weights: bool) -> str:
        chosen = sorted(item for item in marks.items() if (SMALL.fullmatch(item[0]) is None) == of_weights)
        return sha256(json.dumps(chosen).encode()).hexdigest()[:16]

    return f"{SUMMED}{summed(False)}-{summed(True)}"


def local_version(source: str, path: Path) -> str:
    """The version of a checkpoint in a directory.

    Raises:
        ModelError: A file cannot be read.
    """
    marks = {}
    try:
        for file in path.iterdir():
            if SMALL.fullmatch(file.name):
                marks[file.name] = sha256(file.read_bytes()).hexdigest()
            elif ALL.fullmatch(file.name):
                found = file.stat()
                with DiskFile(str(file), found.st_size, str(found.st_mtime_ns)) as weights:
                    marks[file.name] = f"{found.st_size} {weights.digest}"
    except (OSError, RowError) as error:
        raise ModelError(f"model.source {source}: {error}") from error
    return _version(marks)


def s3_version(source: str) -> str | None:
    """The version of a checkpoint in object storage; None if it has no files."""
    try:
        found = list(open_store(source).list(""))
    except StorageError as error:
        if not error.missing_root:
            raise
        raise ModelError(f"model.source {source}: there is no such bucket") from error
    marks = {item.name: f"{item.size} {item.tag}" for item in found if ALL.fullmatch(item.name)}
    return _version(marks) if marks else None
