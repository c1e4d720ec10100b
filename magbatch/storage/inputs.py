"""Finding and reading what a job is given: input files, referenced files, checkpoints."""

import glob
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from magbatch.errors import InputError, ModelError
from magbatch.spec import is_remote
from magbatch.storage.base import ObjectInfo
from magbatch.storage.disk import local_errors, walk
from magbatch.storage.s3 import NoBucketError, S3Store, s3_client, s3_errors, s3_filesystem, split_url

if TYPE_CHECKING:
    import pyarrow.fs as pafs

_WILDCARD = re.compile(r"[*?\[]")


def find_parquet(path: str, *, may_be_none: bool = False) -> list[ObjectInfo]:
    """The input files behind a path, in the order of their names.

    Args:
        path: A file, a directory (every *.parquet below it), or a glob, in which `**` crosses
            folders; local or s3://. Names that begin with `_` or `.` are skipped, but for those
            that a glob spells out.
        may_be_none: No file there is no error; a directory or a bucket that is not there always is.

    Returns:
        Names are whole paths or URLs.

    Raises:
        InputError: Nothing is there.
        StorageError: It cannot be listed.
    """
    files = _find_s3(path) if is_remote(path) else _find_local(path)
    if not files and not may_be_none:
        kind = "no file matches the glob" if _WILDCARD.search(path) else "no *.parquet file here"
        raise InputError(f"input.path {path}: {kind}")
    return sorted(files, key=lambda file: file.name)


def input_folder(path: str) -> str:
    """The folder of an `input.path`: of a file the folder that holds it, of a glob its fixed part, else itself.

    >>> input_folder("/in/2026-*/x.parquet"), input_folder("*.parquet"), input_folder("s3://bucket/in/")
    ('/in', '.', 's3://bucket/in')
    """
    exists = not is_remote(path) and os.path.exists(path)
    wildcard = None if exists else _WILDCARD.search(path)
    if wildcard or (exists and not os.path.isdir(path)):
        fixed = path[: wildcard.start()] if wildcard else path
        folder, slash, _ = fixed.rpartition("/")
        return folder or slash or "."
    return path.rstrip("/") or "/"


def _is_data(relative: str) -> bool:
    parts = relative.split("/")
    return relative.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in parts)


def _find_local(path: str) -> list[ObjectInfo]:
    with local_errors(path):
        if _WILDCARD.search(path) and not os.path.exists(path):
            found = (name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
            names = [name for name in found if _matches(name.split("/"), path.split("/"))]
        elif os.path.isdir(path):
            below = (os.path.join(folder, name) for folder, _, files in walk(path) for name in files)
            names = [name for name in below if _is_data(os.path.relpath(name, path))]
        elif os.path.exists(path):
            names = [path]
        else:
            raise InputError(f"input.path {path}: there is no such file or directory")
        return [ObjectInfo(name, (stat := os.stat(name)).st_size, str(stat.st_mtime_ns)) for name in names]


def _find_s3(path: str) -> list[ObjectInfo]:
    bucket, key = split_url(path)
    wildcard = _WILDCARD.search(key)
    prefix = key[: wildcard.start()] if wildcard else key
    try:
        found = list(S3Store(f"s3://{bucket}").list(prefix))
    except NoBucketError as error:
        raise InputError(f"input.path {path}: there is no such bucket") from error
    if any(item.name == key for item in found):
        kept = [item for item in found if item.name == key]
    elif wildcard:
        kept = [item for item in found if _matches(item.name.split("/"), key.split("/"))]
    else:
        folder = key if not key or key.endswith("/") else f"{key}/"
        kept = [item for item in found if item.name.startswith(folder) and _is_data(item.name[len(folder) :])]
    return [ObjectInfo(f"s3://{bucket}/{item.name}", item.size, item.tag) for item in kept]


def _matches(name: list[str], pattern: list[str]) -> bool:
    """Whether a glob means a name, both cut at the slashes: as on a disk, but `_` hides a name as `.` does."""
    if not name or not pattern:
        return not name and all(part == "**" for part in pattern)
    first, *rest = pattern
    if first == "**" and _matches(name, rest):
        return True
    if name[0].startswith(("_", ".")) and name[0][0] != first[:1]:
        return False
    if first == "**":
        return _matches(name[1:], pattern)
    return fnmatchcase(name[0], first) and _matches(name[1:], rest)


def input_filesystem(path: str) -> tuple["pafs.FileSystem", str]:
    """pyarrow's filesystem for a path, and the path as that filesystem names it."""
    import pyarrow.fs as pafs

    if not is_remote(path):
        return pafs.LocalFileSystem(), path
    bucket, key = split_url(path)
    return s3_filesystem(bucket), f"{bucket}/{key}"


def stat_input(path: str) -> ObjectInfo:
    """One input file as it is now.

    Raises:
        FileNotFoundError: It is gone.
        StorageError: The storage refuses.
    """
    if is_remote(path):
        bucket, key = split_url(path)
        try:
            with s3_errors(path):
                head = s3_client().head_object(Bucket=bucket, Key=key)
                size, tag = head["ContentLength"], head["ETag"]
        except FileNotFoundError:
            # An answer to HEAD has no body: only a GET tells a missing object from a bucket that is away.
            with s3_errors(path):
                found = s3_client().get_object(Bucket=bucket, Key=key)
                found["Body"].close()
                size, tag = found["ContentLength"], found["ETag"]
        return ObjectInfo(path, size, tag.strip('"'))
    with local_errors(path):
        stat = os.stat(path)
    return ObjectInfo(path, stat.st_size, str(stat.st_mtime_ns))


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """An input file as a local one: itself, or a copy of the whole that is gone after the block.

    Raises:
        FileNotFoundError: It is gone.
        StorageError: The storage refuses.
    """
    if not is_remote(path):
        yield path
        return
    bucket, key = split_url(path)
    with tempfile.TemporaryDirectory(prefix="magbatch-") as folder:
        target = os.path.join(folder, "copy.parquet")
        with s3_errors(path):
            s3_client().download_file(bucket, key, target)
        yield target


def fetch_prefix(url: str, target: Path, wanted: "re.Pattern[str]") -> None:
    """Download the objects directly below an s3:// prefix whose names match into a local folder."""
    store = S3Store(url)
    try:
        found = list(store.list(""))
    except NoBucketError as error:
        raise ModelError(f"model.source {url}: there is no such bucket") from error
    for item in found:
        if wanted.fullmatch(item.name):
            bucket, key = split_url(f"{store.root}/{item.name}")
            with s3_errors(f"{store.root}/{item.name}"):
                s3_client().download_file(bucket, key, str(target / item.name))
