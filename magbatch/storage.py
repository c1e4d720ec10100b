"""Object storage and disks behind one small surface.

Two promises. An object written through `Store` is whole as soon as it is visible, and never visible
half: a single PUT on S3, write-then-rename on a disk. And local paths and s3:// behave alike.

boto3 does what needs S3's own semantics (PUT, LIST by prefix, COPY); pyarrow's filesystems read
Parquet input, since they fetch only the column ranges that are asked for. Credentials, region and
endpoint come from the standard AWS chain, `AWS_ENDPOINT_URL` included.
"""

import errno
import functools
import glob
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from itertools import dropwhile, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from magbatch.errors import InputError, ModelError, StorageError
from magbatch.spec import is_remote

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    from botocore.exceptions import BotoCoreError
    from mypy_boto3_s3 import S3Client

S3_ATTEMPTS = 8  # botocore's standard mode: backoff with jitter, 20 s at most between two
S3_CONNECTIONS = 32
S3_CONNECT_TIMEOUT_S = 10
S3_READ_TIMEOUT_S = 60  # without a byte
PATIENT_WAIT_S = 15.0  # at most, between two tries of a patient store
LIST_PAGE = 1000
T = TypeVar("T")
_GONE = frozenset({"NoSuchKey", "404"})
# Of the refusals below 500. Credentials that are just being renewed: new ones take a while to be known everywhere, and
# an answer to HEAD has only its number.
_CREDENTIALS = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}
    | {"SignatureDoesNotMatch", "AccessDenied", "RequestExpired", "400", "403"}
)
# A store that is overloaded, and a request that was damaged or held up on its way.
_PASSING = _CREDENTIALS | frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429", "OperationAborted", "RequestTimeout"}
    | {"RequestTimeTooSkewed", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "ConditionalRequestConflict"}
)
_PASSING_ERRNO = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ENOLCK, errno.ENOMEM}
    | {errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
DRAFTS = "_magbatch/tmp/"  # outside the folders that users glob, and on the same disk, so that a rename is atomic
_WILDCARD = re.compile(r"[*?\[]")
_RENEWING = threading.Lock()


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
def _local_errors(path: str, *, writing: bool = False) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if not writing:
            raise
        # A folder that cannot be there, or that went away under the write: the next try makes it anew.
        raise StorageError(f"{path}: {error.strerror}", passing=True) from error
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", passing=error.errno in _PASSING_ERRNO) from error


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
        with _local_errors(path, writing=True), self._draft(path, data) as draft:
            os.rename(draft, path)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        path = self._path(name)
        with _local_errors(path, writing=True), self._draft(path, data) as draft:
            try:
                os.link(draft, path)  # fails where a name is taken, unlike a rename
            except FileExistsError:
                with suppress(FileNotFoundError):
                    return self.read(name) == data  # a network disk that lost its answer meets its own first link
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
    from boto3.session import Session
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": S3_ATTEMPTS},
        connect_timeout=S3_CONNECT_TIMEOUT_S,
        read_timeout=S3_READ_TIMEOUT_S,
        max_pool_connections=S3_CONNECTIONS,
        # Stores other than AWS's own refuse the trailing checksums that newer clients add by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # Not boto3's default session, which reads a credentials file once: this one ends with its client.
    return Session().client("s3", config=config)


def _renew(client: "S3Client") -> None:
    """Let the next client look for credentials again: those in a file may have been replaced."""
    with _RENEWING:
        if s3_client() is client:
            s3_client.cache_clear()
            _s3_filesystem.cache_clear()


@contextmanager
def _s3_errors(path: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    client: S3Client | None = None
    try:
        client = s3_client()
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _GONE:
            raise FileNotFoundError(path) from error
        if code == "NoSuchBucket":
            raise _NoBucketError(f"{path}: there is no such bucket", passing=True) from error
        hint = "; the credentials come from the standard AWS chain" if code in {"403", "AccessDenied"} else ""
        if code in _CREDENTIALS and client is not None:
            _renew(client)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        # No code at all: it was not the store that answered, but something before it.
        passing = not code or code in _PASSING or (status >= 500 and status != HTTPStatus.NOT_IMPLEMENTED)
        raise StorageError(f"{path}: {error}{hint}", passing=passing) from error
    except BotoCoreError as error:
        raise StorageError(f"{path}: {error}", passing=_may_pass(error)) from error
    except ResponseParserError as error:  # no XML: something between here and the store answered
        raise StorageError(f"{path}: {error}", passing=True) from error


def _may_pass(error: "BotoCoreError") -> bool:
    """Whether a request that got no answer may get one later."""
    from botocore import exceptions

    # A service that gives credentials can be away as a store can; a name that S3 does not allow stays one.
    return isinstance(
        error,
        exceptions.ConnectionError
        | exceptions.HTTPClientError
        | exceptions.IncompleteReadError
        | exceptions.CredentialRetrievalError
        | exceptions.MetadataRetrievalError
        | exceptions.NoCredentialsError
        | exceptions.TokenRetrievalError,
    )


class _NoBucketError(StorageError):
    """Not the same as a missing object: while a bucket is away, finished rows must not look open."""


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
        with _s3_errors(self._where(name)):
            s3_client().put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        client = s3_client()
        for _ in range(S3_ATTEMPTS):
            with _s3_errors(self._where(name)):
                try:
                    client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data, IfNoneMatch="*")
                except client.exceptions.ClientError as error:
                    code = error.response.get("Error", {}).get("Code")
                    if code == "ConditionalRequestConflict":  # another write is under way: see who was first
                        continue
                    if code not in {"PreconditionFailed", "412"}:
                        raise
                    with suppress(FileNotFoundError):
                        return self.read(name) == data  # a retry meets its own first write
                    return False
                return True
        raise StorageError(f"{self._where(name)}: other writes came in between {S3_ATTEMPTS} times", passing=True)

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


class PatientStore:
    """A store that waits out what may pass by itself, with growing waits and jitter.

    Args:
        store: Is tried again.
        patience_s: Seconds that one operation may be refused before its error goes up.
        on_wait: Is called with each refusal that is waited out.
    """

    def __init__(self, store: Store, patience_s: float, on_wait: Callable[[StorageError], None] | None = None) -> None:
        self.root = store.root
        self._store = store
        self._patience_s = patience_s
        self._on_wait = on_wait

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        return self._try(lambda: self._store.read(name))

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        self._try(lambda: self._store.write(name, data))

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        return self._try(lambda: self._store.create(name, data))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`. A listing that breaks off goes on after the last name that was given."""
        last = ""
        items: Iterator[ObjectInfo] | None = None

        def page() -> list[ObjectInfo]:
            nonlocal items
            if items is None:
                items = dropwhile(lambda item: item.name <= last, self._store.list(prefix))
            try:
                return list(islice(items, LIST_PAGE))
            except StorageError:
                items = None
                raise

        while found := self._try(page):
            last = found[-1].name
            yield from found

    def move(self, name: str, target: str) -> None:
        """See `Store.move`."""
        self._try(lambda: self._store.move(name, target))

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        self._try(lambda: self._store.delete(name))

    def _try(self, operation: Callable[[], T]) -> T:
        return patiently(operation, self._patience_s, self._on_wait)


def patiently(
    operation: Callable[[], T], patience_s: float, on_wait: Callable[[StorageError], None] | None = None
) -> T:
    """Try something again while storage refuses it in a way that may pass, with growing waits and jitter.

    Args:
        operation: May be done more than once.
        patience_s: Seconds that it may be refused before its error goes up.
        on_wait: Is called with each refusal that is waited out; what it raises ends the waiting.
    """

    def waiting(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if on_wait is not None and isinstance(error, StorageError):
            on_wait(error)

    jitter = wait_random_exponential(multiplier=0.5, max=PATIENT_WAIT_S)

    def wait(state: RetryCallState) -> float:
        left = patience_s - (state.seconds_since_start or 0.0)
        return max(0.0, min(jitter(state), left))  # the last try is when patience ends

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, StorageError) and error.passing),
        wait=wait,
        stop=stop_after_delay(patience_s),
        before_sleep=waiting,
        reraise=True,
    )(operation)


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
    try:
        found = list(S3Store(f"s3://{bucket}").list(prefix))
    except _NoBucketError as error:
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
    try:
        with _s3_errors(f"s3://{bucket}"):
            region = client.head_bucket(Bucket=bucket).get("BucketRegion") or client.meta.region_name
    except FileNotFoundError as error:
        raise _NoBucketError(f"s3://{bucket}: there is no such bucket", passing=True) from error
    endpoint = client.meta.endpoint_url
    custom = None if endpoint.endswith(".amazonaws.com") else endpoint
    return pafs.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=custom,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        connect_timeout=S3_CONNECT_TIMEOUT_S,
        request_timeout=S3_READ_TIMEOUT_S,
    )


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
        try:
            with _s3_errors(path):
                head = s3_client().head_object(Bucket=bucket, Key=key)
                size, tag = head["ContentLength"], head["ETag"]
        except FileNotFoundError:
            # An answer to HEAD has no body: only a GET tells a missing object from a bucket that is away.
            with _s3_errors(path):
                found = s3_client().get_object(Bucket=bucket, Key=key)
                found["Body"].close()
                size, tag = found["ContentLength"], found["ETag"]
        return ObjectInfo(path, size, tag.strip('"'))
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
    try:
        found = list(store.list(""))
    except _NoBucketError as error:
        raise ModelError(f"model.source {url}: there is no such bucket") from error
    for item in found:
        if wanted.fullmatch(item.name):
            bucket, key = _split(f"{store.root}/{item.name}")
            with _s3_errors(f"{store.root}/{item.name}"):
                s3_client().download_file(bucket, key, str(target / item.name))
