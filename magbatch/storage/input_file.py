"""An input file that must stay the planned one while it is read.

Every byte comes from the planned file, or the read fails. S3 names the version (ETag) with each answer. A file on a
disk stays open while it is read, and is compared with the plan again before its rows are used. Bytes that did not
arrive raise `StorageError`; they never look like damage, so the Parquet reader judges only bytes that arrived.
"""

import errno
import io
import os
import stat
from abc import abstractmethod
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from magbatch.errors import ErrorCode, RefusedError, RowError, StorageError
from magbatch.spec import is_remote
from magbatch.storage.inputs import stat_input
from magbatch.storage.s3 import s3_client, s3_errors, split_url

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

ATTEMPTS = 4  # tries of a range whose reply broke off; the client itself repeats requests without a reply
PRINT_WHOLE_BYTES = 256 << 10  # largest file that is hashed whole
PRINT_END_BYTES = 64 << 10  # bytes hashed at both ends of a larger file; its end holds the footer
PRINT_BLOCK_BYTES = 4 << 10
PRINT_BLOCKS = 16  # number of blocks hashed between the ends, at even distances
# Errors of a disk that is away. A bad sector (EIO) is not one of them: waiting does not help.
_AWAY = frozenset(
    {errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ENOLCK, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
    | {errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ESHUTDOWN}
)


class InputFile(io.RawIOBase):
    """A file of known size that Python and Arrow can read.

    Args:
        path: Local path or s3:// URL.
        size: Size in bytes when the file was planned.
        tag: ETag or modification time (ns) when the file was planned.

    Attributes:
        digest: Fingerprint of a file on a disk, 32 hex characters; None for an object, whose ETag identifies it.
        failure: Last error of a read; None if there was none. Arrow may have replaced it by an error of its own.
    """

    def __init__(self, path: str, size: int, tag: str) -> None:
        self.path, self.size_bytes, self.tag = path, size, tag
        self.digest: str | None = None
        self.failure: Exception | None = None
        self._position = 0

    @abstractmethod
    def _range(self, start: int, length: int) -> bytes:
        """Return bytes [start, start + length), fewer at the end of the file."""

    def check(self) -> None:
        """Raise `RowError` (`file_changed`) unless all bytes read so far came from the planned file."""

    def read_at(self, start: int, length: int) -> bytes:
        """Return bytes [start, start + length), fewer at the end of the file.

        Raises:
            RowError: `file_changed`: the file is no longer the planned one.
            FileNotFoundError: The file was deleted since it was planned.
            StorageError: The storage does not answer, or refuses.
        """
        length = min(length, self.size_bytes - start)
        try:
            return self._range(start, length) if length > 0 else b""
        except (RowError, StorageError, FileNotFoundError) as error:
            self.failure = error
            raise

    def changed(self, how: str) -> RowError:
        """Return the error of a file that is no longer the planned one.

        Args:
            how: Difference, in words.
        """
        return RowError(
            ErrorCode.FILE_CHANGED,
            f"{self.path} is not the file that was planned ({how}); run the changed input into a new output",
        )

    # The file protocol of Python and Arrow

    def readable(self) -> bool:
        """True: the file can be read; see `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """True: the position can be set; see `io.IOBase`."""
        return True

    def tell(self) -> int:
        """Position in the file; see `io.IOBase`."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; see `io.IOBase`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the position; see `io.IOBase`."""
        data = self.read_at(self._position, self.size_bytes if size is None or size < 0 else size)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer; see `io.IOBase`."""
        data = self.read(len(memoryview(buffer).cast("B")))
        memoryview(buffer).cast("B")[: len(data)] = data
        return len(data)


class DiskFile(InputFile):
    """A file on a disk.

    The file is the planned one if its size, modification time and fingerprint are the planned ones. Owner, mode, links
    and inode may differ: a dataset copied or restored with its times is the same. Any change of the inode during the
    read, of those attributes too, is noticed; then the fingerprint decides.

    Args:
        path: Local path.
        size: Size in bytes when the file was planned.
        tag: Modification time (ns) when the file was planned.
        digest: Fingerprint when the file was planned; None in plans of older versions.

    Raises:
        RowError: `file_changed`, or `file_unreadable` if it is not a regular file or may not be read.
        FileNotFoundError: The file was deleted since it was planned.
        StorageError: The disk is away.
    """

    def __init__(self, path: str, size: int, tag: str, digest: str | None = None) -> None:
        super().__init__(path, size, tag)
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would block
            self._seen = os.fstat(self._descriptor)
        except OSError as error:
            raise _refused(path, error) from error
        if not stat.S_ISREG(self._seen.st_mode):
            raise RowError(ErrorCode.FILE_UNREADABLE, f"{path}: not a regular file")
        self._compare(self._seen)
        self.digest = self.fingerprint()
        if digest is not None and digest != self.digest:
            raise self.changed("its content differs, though size and modification time are the same")

    def fingerprint(self) -> str:
        """Hash a small file whole, and blocks of a large one: 32 hex characters.

        The blocks include the end, which holds a Parquet file's footer: position, size and bounds of every column's
        data. Different content almost always means a different footer.
        """
        found = blake2b(digest_size=16)
        if self.size_bytes <= PRINT_WHOLE_BYTES:
            places = [(0, self.size_bytes)]
        else:
            step = (self.size_bytes - 2 * PRINT_END_BYTES) // PRINT_BLOCKS
            blocks = [(PRINT_END_BYTES + step * at, PRINT_BLOCK_BYTES) for at in range(PRINT_BLOCKS)]
            places = [(0, PRINT_END_BYTES), *blocks, (self.size_bytes - PRINT_END_BYTES, PRINT_END_BYTES)]
        for start, length in places:
            found.update(self.read_at(start, length))
        return found.hexdigest()

    def check(self) -> None:
        """Check the file on the disk; see `InputFile.check`."""
        try:
            now = os.fstat(self._descriptor)
            try:
                # A network disk asks its server when a file is opened; `fstat` alone may be answered from memory.
                again = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                again = -1
            if again >= 0:
                try:
                    other = os.fstat(again)
                finally:
                    os.close(again)
                if os.path.samestat(other, now):
                    now = other
        except OSError as error:
            raise _refused(self.path, error) from error
        self._compare(now)
        if now.st_ctime_ns != self._seen.st_ctime_ns:  # a writer may have set the modification time back
            if self.fingerprint() != self.digest:
                raise self.changed("it was changed during the read")
            self._seen = now

    def _compare(self, now: os.stat_result) -> None:
        if now.st_size != self.size_bytes:
            raise self.changed(f"{self.size_bytes:,} bytes then, {now.st_size:,} now")
        if str(now.st_mtime_ns) != self.tag:
            raise self.changed("its modification time differs")

    def _range(self, start: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, start)
            while len(data) < length and (more := os.pread(self._descriptor, length - len(data), start + len(data))):
                data += more  # Linux reads at most 2 GiB at once
        except OSError as error:
            if error.errno in _AWAY:
                raise _refused(self.path, error) from error
            raise  # a bad sector: the data there is damaged
        return data

    def close(self) -> None:
        """Close the file; see `io.IOBase`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        super().close()


class S3File(InputFile):
    """An object in a bucket. Each answer names the object's ETag, so every range is of the planned version.

    Args:
        path: s3:// URL.
        size: Size in bytes when the object was planned.
        tag: ETag when the object was planned.
    """

    def _range(self, start: int, length: int) -> bytes:
        bucket, key = split_url(self.path)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with s3_errors(self.path):
                    answer = s3_client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + length - 1}")
                    self._is_planned(answer)
                    return answer["Body"].read()
            except StorageError as error:
                if not error.passing:
                    raise self._own_matter(error) from error
                if isinstance(error, RefusedError) or attempt == ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _own_matter(self, error: StorageError) -> RowError:
        """Return the row error of an object that exists but cannot be read.

        Raises:
            StorageError: The store also refuses to describe the object, so the fault is not the object's.
        """
        now = stat_input(self.path)
        if now.tag != self.tag:  # the object changed; for example, a shorter version lacks the range
            return self.changed(f"ETag {self.tag} then, {now.tag} now")
        return RowError(ErrorCode.FILE_UNREADABLE, str(error))

    def _is_planned(self, answer: "GetObjectOutputTypeDef") -> None:
        tag = answer["ETag"].strip('"')
        if tag != self.tag:
            answer["Body"].close()
            raise self.changed(f"ETag {self.tag} then, {tag} now")


def open_input(path: str, size: int, tag: str, digest: str | None = None) -> InputFile:
    """Open an input file as it was planned; see `DiskFile` and `S3File`.

    Raises:
        RowError: `file_changed`, or `file_unreadable` if it is not a regular file or may not be read.
        FileNotFoundError: The file was deleted since it was planned.
        StorageError: The storage does not answer, or refuses.
    """
    return S3File(path, size, tag) if is_remote(path) else DiskFile(path, size, tag, digest)


def _refused(path: str, error: OSError) -> Exception:
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(path)
    if error.errno in _AWAY:
        return StorageError(f"{path}: {error.strerror}", passing=True)
    return RowError(ErrorCode.FILE_UNREADABLE, f"{path}: {error.strerror or error}")
