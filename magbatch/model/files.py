"""The files of a checkpoint: their names, and the folder in which a node keeps fetched ones."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magbatch.errors import ModelError

SMALL_FILES = ("params.json", "tekken.json", "SYSTEM_PROMPT.txt")
SMALL = re.compile(r"(params\.json|tekken\.json|SYSTEM_PROMPT\.txt)")
# Mistral's own format; files with the same weights in Hugging Face's format are not fetched.
ALL = re.compile(r"(params\.json|tekken\.json|SYSTEM_PROMPT\.txt|consolidated.*\.(safetensors|json))")
SUMMED = "sha256:"  # prefix of a revision that is made of checksums: only the hub's models have their own


def check_files(source: str, path: Path) -> None:
    """Check that a directory holds a checkpoint.

    Raises:
        ModelError: A file is missing.
    """
    for name in ("params.json", "tekken.json"):
        if not (path / name).is_file():
            raise ModelError(f"model.source {source}: {name} is missing; magbatch runs checkpoints in Mistral's format")


def cache_dir() -> Path:
    """The directory of fetched and built checkpoints: `$MAGBATCH_CACHE`, else ~/.cache/magbatch."""
    return Path(os.environ.get("MAGBATCH_CACHE") or Path.home() / ".cache" / "magbatch")


@contextmanager
def in_cache() -> Iterator[None]:
    """Turn errors of the cache's disk into a message that names the variable to set.

    Raises:
        ModelError: The folder cannot be made or written, or is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # a RuntimeError: this user has no home
        set_by = os.environ.get("MAGBATCH_CACHE")
        where = f"MAGBATCH_CACHE={set_by}" if set_by else f"HOME={os.environ.get('HOME', '')}"
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        raise ModelError(
            f"{where}: the model's files cannot be kept there ({reason}); set MAGBATCH_CACHE to a folder that can be "
            "written and has room"
        ) from error


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Admit one process of this node at a time; a lock ends with the process that holds it.

    Args:
        path: Lock file, made if it is missing.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
