"""Object storage and disks behind one small surface.

Two promises. An object written through `Store` is whole as soon as it is visible, and never visible
half: a single PUT on S3, write-then-rename on a disk. And local paths and s3:// behave alike.

boto3 does what needs S3's own semantics (PUT, LIST by prefix, COPY); pyarrow's filesystems read
Parquet input, since they fetch only the column ranges that are asked for. Credentials, region and
endpoint come from the standard AWS chain, `AWS_ENDPOINT_URL` included.
"""

import functools
import glob
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from magbatch.errors import InputError, StorageError
from magbatch.spec import is_remote

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    from mypy_boto3_s3 import S3Client

S3_ATTEMPTS = 8  # botocore's standard mode: backoff with jitter, 20 s at most between two
S3_CONNECTIONS = 32
_GONE = frozenset({"NoSuchKey", "NoSuchBucket", "404"})
DRAFTS = "_magbatch/tmp/"  # outside the folders that users glob, and on the same disk, so that a rename is atomic
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing shows it.

    Attributes:
        name: Relative to the store's root.
        size: Bytes.
        tag: Changes when the content does: the ETag on S3, the modification time (ns) on a disk.
    """

    name: str
    size: int
    tag: str


class Store(Protocol):
    """A place for whole objects, by name relative to its root."""

    root: str

    def read(self, name: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: No such object.
            StorageError: The storage refuses.
        """

    def write(self, name: str, data: bytes) -> None:
        """Make the object visible, whole; an older one by this name is replaced at once."""

    def create(self, name: str, data: bytes) -> bool:
        """Make the object visible, whole, unless one by this name is there: then False, and it stays as it is.

        What is written should be unlike what anybody else would write: an own write whose answer was lost is
        known by its content.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose name begins with prefix, in the order of their names; none where nothing is."""

    def move(self, name: str, target: str) -> None:
        """Rename an object; one that is gone already is no error."""

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone already is no error."""


def open_store(root: str) -> Store:
    """The store at a local directory or an s3:// prefix; nothing is created yet."""
    return S3Store(root) if is_remote(root) else LocalStore(root)


@contextmanager
def _local_errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error


class LocalStore:
    """Objects as files below a directory."""

    def __init__(self, root: str) -> None:
        self.root = root

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        with _local_errors(self._path(name)):
            return Path(self._path(name)).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        path = self._path(name)
        with _local_errors(path), self._draft(path, data) as draft:
            os.rename(draft, path)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        path = self._path(name)
        with _local_errors(path), self._draft(path, data) as draft:
            try:
                os.link(draft, path)  # fails where a name is taken, unlike a rename
            except FileExistsError:
                return False
        return True

    @contextmanager
    def _draft(self, path: str, data: bytes) -> Iterator[str]:
        """A whole file on the disk of `path`, to be given that name; gone after the block."""
        draft = self._path(f"{DRAFTS}{uuid.uuid4().hex}")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.makedirs(os.path.dirname(draft), exist_ok=True)
        try:
            with open(draft, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield draft
        finally:
            with suppress(OSError):
                os.unlink(draft)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        folder = self._path(prefix.rpartition("/")[0])
        with _local_errors(folder):
            paths = (os.path.join(where, name) for where, _, files in _walk(folder) for name in files)
            names = (os.path.relpath(path, self.root) for path in paths)
            for name in sorted(name for name in names if name.startswith(prefix)):
                if name.startswith(DRAFTS) and not prefix.startswith(DRAFTS):
                    continue
                try:
                    stat = os.stat(self._path(name))
                except FileNotFoundError:  # moved since the folder was read
                    continue
                yield ObjectInfo(name, stat.st_size, str(stat.st_mtime_ns))

    def move(self, name: str, target: str) -> None:
        """See `Store.move`."""
        with _local_errors(self._path(name)):
            os.makedirs(os.path.dirname(self._path(target)), exist_ok=True)
            try:
                os.rename(self._path(name), self._path(target))
            except FileNotFoundError:
                return

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        with _local_errors(self._path(name)):
            Path(self._path(name)).unlink(missing_ok=True)


def _walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk, but a folder that cannot be read is an error: its rows would look as if they were not done."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    return os.walk(folder, onerror=refuse, followlinks=True)


@functools.cache
def s3_client() -> "S3Client":
    """One client for this process; boto3's clients may be shared between threads."""
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": S3_ATTEMPTS},
        max_pool_connections=S3_CONNECTIONS,
        # Stores other than AWS's own refuse the trailing checksums that newer clients add by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client("s3", config=config)


@contextmanager
def _s3_errors(path: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _GONE:
            raise FileNotFoundError(path) from error
        hint = "; the credentials come from the standard AWS chain" if code in {"403", "AccessDenied"} else ""
        raise StorageError(f"{path}: {error}{hint}") from error
    except BotoCoreError as error:
        raise StorageError(f"{path}: {error}") from error


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


class S3Store:
    """Objects below a prefix of a bucket."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._bucket, key = _split(self.root)
        self._prefix = f"{key}/" if key else ""

    def _where(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        with _s3_errors(self._where(name)):
            return s3_client().get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        try:
            with _s3_errors(self._where(name)):
                s3_client().put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)
        except FileNotFoundError as error:
            raise StorageError(f"{self._where(name)}: there is no such bucket") from error

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        client = s3_client()
        for _ in range(S3_ATTEMPTS):
            try:
                with _s3_errors(self._where(name)):
                    try:
                        client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data, IfNoneMatch="*")
                    except client.exceptions.ClientError as error:
                        code = error.response.get("Error", {}).get("Code")
                        if code == "ConditionalRequestConflict":  # another write is under way: see who was first
                            continue
                        if code not in {"PreconditionFailed", "412"}:
                            raise
                        return self.read(name) == data  # a retry meets its own first write
                    return True
            except FileNotFoundError as error:
                raise StorageError(f"{self._where(name)}: there is no such bucket") from error
        raise StorageError(f"{self._where(name)}: other writes came in between {S3_ATTEMPTS} times")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        with suppress(FileNotFoundError), _s3_errors(self._where(prefix)):
            for page in pages:
                for item in page.get("Contents", []):
                    yield ObjectInfo(item["Key"][len(self._prefix) :], item["Size"], item["ETag"].strip('"'))

    def move(self, name: str, target: str) -> None:
        """See `Store.move`."""
        source = {"Bucket": self._bucket, "Key": self._prefix + name}
        with _s3_errors(self._where(name)):
            try:
                s3_client().copy_object(Bucket=self._bucket, Key=self._prefix + target, CopySource=source)  # type: ignore[arg-type]
            except s3_client().exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") in _GONE:
                    return
                raise
        self.delete(name)

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        with _s3_errors(self._where(name)):
            s3_client().delete_object(Bucket=self._bucket, Key=self._prefix + name)


def find_parquet(path: str) -> list[ObjectInfo]:
    """The input files behind a path, in the order of their names.

    Args:
        path: A file, a directory (every *.parquet below it), or a glob, in which `**` crosses
            folders; local or s3://. Names that begin with `_` or `.` are skipped, but for those
            that a glob spells out.

    Returns:
        Names are whole paths or URLs.

    Raises:
        InputError: Nothing is there.
        StorageError: It cannot be listed.
    """
    files = _find_s3(path) if is_remote(path) else _find_local(path)
    if not files:
        kind = "no file matches the glob" if _WILDCARD.search(path) else "no *.parquet file here"
        raise InputError(f"input.path {path}: {kind}")
    return sorted(files, key=lambda file: file.name)


def _is_data(relative: str) -> bool:
    parts = relative.split("/")
    return relative.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in parts)


def _find_local(path: str) -> list[ObjectInfo]:
    with _local_errors(path):
        if _WILDCARD.search(path) and not os.path.exists(path):
            found = (name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
            names = [name for name in found if _matches(name.split("/"), path.split("/"))]
        elif os.path.isdir(path):
            below = (os.path.join(folder, name) for folder, _, files in _walk(path) for name in files)
            names = [name for name in below if _is_data(os.path.relpath(name, path))]
        elif os.path.exists(path):
            names = [path]
        else:
            raise InputError(f"input.path {path}: there is no such file or directory")
        return [ObjectInfo(name, (stat := os.stat(name)).st_size, str(stat.st_mtime_ns)) for name in names]


def _find_s3(path: str) -> list[ObjectInfo]:
    bucket, key = _split(path)
    wildcard = _WILDCARD.search(key)
    prefix = key[: wildcard.start()] if wildcard else key
    found = list(S3Store(f"s3://{bucket}").list(prefix))
    if not found:
        try:
            with _s3_errors(path):
                s3_client().head_bucket(Bucket=bucket)
        except FileNotFoundError as error:
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


@functools.cache
def _s3_filesystem(bucket: str) -> "pafs.FileSystem":
    import pyarrow.fs as pafs

    client = s3_client()
    with _s3_errors(f"s3://{bucket}"):
        region = client.head_bucket(Bucket=bucket).get("BucketRegion") or client.meta.region_name
    endpoint = client.meta.endpoint_url
    custom = None if endpoint.endswith(".amazonaws.com") else endpoint
    return pafs.S3FileSystem(region=region or "us-east-1", endpoint_override=custom)


def input_filesystem(path: str) -> tuple["pafs.FileSystem", str]:
    """pyarrow's filesystem for a path, and the path as that filesystem names it."""
    import pyarrow.fs as pafs

    if not is_remote(path):
        return pafs.LocalFileSystem(), path
    bucket, key = _split(path)
    return _s3_filesystem(bucket), f"{bucket}/{key}"


def stat_input(path: str) -> ObjectInfo:
    """One input file as it is now.

    Raises:
        FileNotFoundError: It is gone.
        StorageError: The storage refuses.
    """
    if is_remote(path):
        bucket, key = _split(path)
        with _s3_errors(path):
            head = s3_client().head_object(Bucket=bucket, Key=key)
        return ObjectInfo(path, head["ContentLength"], head["ETag"].strip('"'))
    with _local_errors(path):
        stat = os.stat(path)
    return ObjectInfo(path, stat.st_size, str(stat.st_mtime_ns))


def read_at_most(path: str, limit: int) -> bytes:
    """A referenced file: at most limit + 1 bytes of it, so that the caller sees when it is larger.

    Raises:
        FileNotFoundError: No such file or object.
        StorageError: The storage refuses.
    """
    if is_remote(path):
        bucket, key = _split(path)
        with _s3_errors(path):
            return s3_client().get_object(Bucket=bucket, Key=key)["Body"].read(limit + 1)
    with _local_errors(path), open(path, "rb") as file:
        return file.read(limit + 1)


def fetch_prefix(url: str, target: Path, wanted: "re.Pattern[str]") -> None:
    """Download the objects directly below an s3:// prefix whose names match into a local folder."""
    store = S3Store(url)
    for item in store.list(""):
        if wanted.fullmatch(item.name):
            bucket, key = _split(f"{store.root}/{item.name}")
            with _s3_errors(f"{store.root}/{item.name}"):
                s3_client().download_file(bucket, key, str(target / item.name))
