"""Read files and objects that rows name: only from allowed folders and buckets, within limits of size and time.

A row is untrusted data. It may name files below the input's own folder, or objects in the input's own bucket, and
below the entries of `input.fetch_from`. Links are resolved before the check; `.` and `..` in keys too. Only regular
files are opened.

A file that is forbidden or cannot be read is an error of that row alone. A job stops only if the input's own store is
away. A request that names nothing from the row tests that.

Two things are not promised: rows may read every object of the input's bucket that the job's credentials may read, and
every file below the input's folder.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence

from magbatch.errors import (
    AwsSettingsError,
    LateError,
    NoBucketError,
    OutOfReachError,
    RefusedError,
    StorageError,
    ThrottledError,
    UnfetchableError,
)
from magbatch.spec import is_remote
from magbatch.storage.disk import local_errors
from magbatch.storage.globs import listed_prefix
from magbatch.storage.s3 import quick_s3_client, s3_client, s3_errors, split_url
from magbatch.storage.search import input_folder

CHUNK_BYTES = 1 << 20  # bytes read at once; the deadline is checked in between
TRIES = 3  # tries of a read that the input's own store refuses while it answers other requests
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


class References:
    """Reader of the files and objects that rows name.

    Args:
        input_path: `input.path`; rows may name files in its folder, or objects in its bucket.
        more: `input.fetch_from`: further local folders and s3:// prefixes that rows may name.
    """

    def __init__(self, input_path: str, more: Sequence[str] = ()) -> None:
        self._remote = is_remote(input_path)
        self._bucket = split_url(input_path)[0] if self._remote else None
        self._listed = listed_prefix(split_url(input_path)[1])  # planning listed it, so the job's role may
        self._root = None if self._remote else os.path.realpath(input_folder(input_path))
        self._folders = [os.path.realpath(path) for path in more if not is_remote(path)]
        self._prefixes = [split_url(path.rstrip("/")) for path in more if is_remote(path)]

    def read(self, path: str, folder: str, limit: int, deadline: float) -> bytes:
        """Return a file or object; at most limit + 1 bytes of it, so that the caller sees if it is larger.

        Args:
            path: Local path or s3:// URL.
            folder: Folder of the row's own file; relative paths start there.
            limit: Bytes that the caller accepts.
            deadline: Time of the monotonic clock (seconds) at which the read ends. It is checked between
                chunks; the client's own timeouts end the read from a silent store.

        Raises:
            OutOfReachError: The row may not name this path.
            FileNotFoundError: The file or object does not exist.
            UnfetchableError: The file or object cannot be read.
            LateError: The deadline has passed.
            StorageError: The store of the input is away.
        """
        if not is_remote(path) and not os.path.isabs(path):
            path = f"{folder}/{path}"
        if is_remote(path):
            bucket, key = _resolved(path)
            self._check_object(bucket, key)
            own, where = bucket == self._bucket, f"s3://{bucket}/{key}"

            def act() -> bytes:
                return _read_object(bucket, key, limit, deadline, quick=not own)

        else:
            where = real = os.path.realpath(path)
            own = self._check_file(real, folder)

            def act() -> bytes:
                return _read_file(real, limit, deadline)

        try:
            return self._of_the_store(act) if own else _of_the_row(act)
        except UnfetchableError as error:  # the caller's message has the path as the row wrote it, not as resolved
            raise UnfetchableError(str(error).removeprefix(f"{where}: ")) from error

    def _check_object(self, bucket: str, key: str) -> None:
        if bucket == self._bucket or any(bucket == name and _is_below(key, prefix) for name, prefix in self._prefixes):
            return
        where = (
            f"is outside the bucket of input.path, {self._bucket}" if self._bucket else "is on S3, the input on a disk"
        )
        raise OutOfReachError(f"the object {where}; to allow it: input.fetch_from: [s3://bucket/prefix]")

    def _check_file(self, real: str, folder: str) -> bool:
        """Check a resolved path.

        Returns:
            Whether the file lies in the input's own tree.

        Raises:
            OutOfReachError: The row may not name this path.
        """
        if not self._remote:
            # The owner of the input may have linked a folder into it; then the row's own file lies in that folder.
            linked = os.path.realpath(folder) if folder else self._root
            if any(root is not None and _is_below(real, root) for root in (self._root, linked)):
                return True
        if not any(_is_below(real, root) for root in self._folders):
            where = "on this machine, the input on S3" if self._remote else f"outside the input's folder, {self._root}"
            raise OutOfReachError(f"the file is {where}; to allow it: input.fetch_from: [FOLDER]")
        return False

    def _of_the_store(self, act: Callable[[], bytes]) -> bytes:
        """Read from the input's own store; if the whole store is away, raise `StorageError`, else blame the row."""
        for _ in range(TRIES):
            try:
                return act()
            except StorageError as error:
                if isinstance(error, AwsSettingsError | ThrottledError):
                    raise
                if not error.passing:
                    raise UnfetchableError(str(error)) from error
                self._check_store()
                last = error
                if isinstance(error, RefusedError) and not isinstance(error, NoBucketError):
                    break
        raise UnfetchableError(str(last)) from last

    def _check_store(self) -> None:
        """Raise `StorageError` if the store of the input refuses a simple listing too."""
        if self._bucket is not None:
            with s3_errors(f"s3://{self._bucket}"):
                s3_client().list_objects_v2(Bucket=self._bucket, Prefix=self._listed, MaxKeys=1)
        elif self._root is not None:
            with local_errors(self._root), os.scandir(self._root) as entries:
                next(entries, None)


def _of_the_row(act: Callable[[], bytes]) -> bytes:
    """Read from an entry of `input.fetch_from`: any refusal there is an error of this row."""
    try:
        return act()
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in {errno.EMFILE, errno.ENFILE}:
            raise  # this machine has too many open files: that is not the row's fault
        raise UnfetchableError(str(error)) from error


def _is_below(path: str, folder: str) -> bool:
    return folder in ("", path) or path.startswith(f"{folder.rstrip('/')}/")


def _resolved(url: str) -> tuple[str, str]:
    """Return the bucket and key that a request for an s3:// URL would reach.

    HTTP clients resolve `.` and `..` in a request's path (RFC 3986, section 5.2.4). Left in the key, they would lead
    out of the prefix or bucket that was checked. The rest of the key stays as it is.

    >>> _resolved("s3://bucket/in/../other/./x")
    ('bucket', 'other/x')
    """
    bucket, key = split_url(url)
    steps: list[str] = []
    for step in key.split("/"):
        if step == "..":
            del steps[-1:]
        elif step != ".":
            steps.append(step)
    return bucket, "/".join(steps)


def _read_object(bucket: str, key: str, limit: int, deadline: float, *, quick: bool) -> bytes:
    client = quick_s3_client if quick else s3_client
    with s3_errors(f"s3://{bucket}/{key}", client):
        body = client().get_object(Bucket=bucket, Key=key)["Body"]
        try:
            return _read_chunks(body.read, limit, deadline)
        finally:
            body.close()


def _read_file(path: str, limit: int, deadline: float) -> bytes:
    with local_errors(path):
        _check_regular(os.stat(path))  # before it is opened: opening rewinds a tape, and wakes the writer of a pipe
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(handle, "rb", buffering=0) as file:
            _check_regular(os.fstat(handle))
            return _read_chunks(file.read, limit, deadline)


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnfetchableError(f"{_KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, not a file")


def _read_chunks(read: Callable[[int], bytes | None], limit: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) <= limit:
        if time.monotonic() > deadline:
            raise LateError
        chunk = read(min(CHUNK_BYTES, limit + 1 - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)
