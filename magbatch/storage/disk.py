"""Objects as files below a directory."""

import errno
import fcntl
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from magbatch.errors import FullDiskError, StorageError
from magbatch.storage.base import ObjectInfo

DRAFTS = "_magbatch/tmp/"  # folder outside those that users glob, on the same disk, so that a rename is atomic
FOLDER_TRIES = 10  # tries to make a folder; each fails only if another process removes it in that moment
# Errors of disks that may pass: full disks, disks whose server is away, and machines out of handles or memory.
PASSING_ERRNO = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ENOLCK, errno.ENOMEM}
    | {errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
# Errors of an entry that was moved since its folder was read, or of a link to nothing or to itself.
_NOT_THERE = frozenset({errno.ENOENT, errno.ELOOP})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_MEND = {
    errno.EACCES: "give this user access to it",
    errno.EPERM: "give this user access to it",
    errno.EROFS: "make this disk writable again",
}
# Network disks and mounted buckets without hard links.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

# Disks that cannot sync a folder, and folders that this user may write but not read.
_NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EBADF})


@contextmanager
def local_errors(path: str, *, writing: bool = False) -> Iterator[None]:
    """Raise the errors of a disk within the block as `StorageError`.

    Args:
        path: Path that the block works on, for messages.
        writing: Whether the block writes. A write that misses its folder is a `StorageError` that may pass; a read
            that misses its file stays a `FileNotFoundError`.
    """
    try:
        yield
    except FileNotFoundError as error:
        if not writing:
            raise
        # A folder that was removed during the write is made again by the next try.
        raise StorageError(f"{path}: {error.strerror}", passing=True) from error
    except OSError as error:
        kind = FullDiskError if error.errno in _FULL else StorageError
        mend = f"; {_MEND[error.errno]}" if error.errno in _MEND else ""
        raise kind(f"{path}: {error.strerror or error}{mend}", passing=error.errno in PASSING_ERRNO) from error


class LocalStore:
    """Objects as files below a directory.

    A write goes to a draft on the same disk, is synced, and then gets its name. So a crash leaves only a draft.

    Args:
        root: Directory; it is created by the first write.
    """

    patience_s = 0.0

    def __init__(self, root: str) -> None:
        self.root = root

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def read(self, name: str) -> bytes:
        """Return a whole object; see `Store.read`."""
        with local_errors(self._path(name)), open(self._path(name), "rb", opener=_at_once) as file:
            return file.read()

    def read_end(self, name: str, size: int) -> bytes:
        """Return the end of an object; see `Store.read_end`."""
        with local_errors(self._path(name)), open(self._path(name), "rb", opener=_at_once) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Make an object visible; see `Store.write`."""
        path = self._path(name)
        with local_errors(path, writing=True), self._draft(path, data) as draft:
            os.rename(draft, path)
            _sync_folder(os.path.dirname(path))

    def create(self, name: str, data: bytes) -> bool:
        """Make an object visible unless its name is taken; see `Store.create`."""
        path = self._path(name)
        with local_errors(path, writing=True), self._draft(path, data) as draft:
            try:
                _give_name(draft, path)
            except FileExistsError:
                with suppress(FileNotFoundError):
                    return self.read(name) == data  # on a network disk, a retry after a lost reply finds its own link
                return False
            _sync_folder(os.path.dirname(path))
        return True

    def replace(self, name: str, data: bytes, old: bytes) -> bool:
        """Replace an object with known content; see `Store.replace`."""
        path = self._path(name)
        with local_errors(path, writing=True):
            _make_folder(os.path.dirname(path))
        with local_errors(path, writing=True), open(f"{path}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, or the process ends
            try:
                found = self.read(name)
            except FileNotFoundError:
                return False
            if found != old:
                return found == data
            self.write(name, data)
        return True

    def keeps_conditions(self, name: str, data: bytes) -> bool:
        """Test `create`; see `Store.keeps_conditions`. `replace` needs no test: it compares under its own lock."""
        path = self._path(name)
        with local_errors(path, writing=True), self._draft(path, data) as draft:
            try:
                _give_name(draft, path)
            except FileExistsError:
                return True
        return False

    @contextmanager
    def _draft(self, path: str, data: bytes) -> Iterator[str]:
        """Write a draft on the disk of `path`, give its path, and remove it after the block."""
        draft = self._path(f"{DRAFTS}{uuid.uuid4().hex}")
        _make_folder(os.path.dirname(path))
        _make_folder(os.path.dirname(draft))
        try:
            with open(draft, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield draft
        finally:
            with suppress(OSError):
                os.unlink(draft)

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """List objects; see `Store.list`."""
        folder, slash, _ = prefix.rpartition("/")
        with local_errors(self._path(folder)):
            names = self._names(folder + slash, prefix)
            for name in sorted(name for name in names if name > after):
                try:
                    found = os.stat(self._path(name))
                except OSError as error:
                    if error.errno in _NOT_THERE:
                        continue
                    raise
                if stat.S_ISREG(found.st_mode):  # a pipe would block its reader forever
                    yield ObjectInfo(name, found.st_size, str(found.st_mtime_ns))

    def _names(self, base: str, prefix: str) -> Iterator[str]:
        """Yield the names of files that start with a prefix.

        Args:
            base: Folder to look in: empty, or with a slash at its end.
            prefix: Start of the names. Folders that cannot hold such names are not entered.
        """
        try:
            with os.scandir(self._path(base)) as entries:
                found = ((f"{base}{entry.name}", entry) for entry in entries)
                wanted = [(name, _is_folder(entry)) for name, entry in found if name.startswith(prefix)]
        except FileNotFoundError:
            return
        for name, is_folder in wanted:
            if not is_folder:
                yield name
            elif f"{name}/" != DRAFTS or prefix.startswith(DRAFTS):
                yield from self._names(f"{name}/", prefix)

    def move(self, name: str, target: str) -> None:
        """Rename an object; see `Store.move`."""
        with local_errors(self._path(name)):
            _make_folder(os.path.dirname(self._path(target)))
            try:
                os.rename(self._path(name), self._path(target))
            except FileNotFoundError:
                return
            _sync_folder(os.path.dirname(self._path(target)))
            _sync_folder(os.path.dirname(self._path(name)))

    def delete(self, name: str) -> None:
        """Remove an object; see `Store.delete`."""
        with local_errors(self._path(name)):
            Path(self._path(name)).unlink(missing_ok=True)


def _at_once(path: str, flags: int) -> int:
    """Open a file without blocking: a pipe of this name reads as empty."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder, or a link to a folder outside the link's own path (such links lead in circles)."""
    try:
        if not entry.is_dir():
            return False
    except OSError as error:
        if error.errno in _NOT_THERE:
            return False
        raise
    if not entry.is_symlink():
        return True
    above = f"{os.path.realpath(os.path.dirname(entry.path))}/"
    return not above.startswith(f"{os.path.realpath(entry.path)}/")


def _sync_folder(path: str) -> None:
    """Make the names in a folder survive a power cut. Otherwise a manifest could survive the objects that it names."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _make_folder(path: str) -> None:
    """Make a folder and its parents. Try again if another process removes one of them in between.

    Raises:
        StorageError: A folder was removed `FOLDER_TRIES` times.
    """
    for _ in range(FOLDER_TRIES):
        missing, above = list[str](), path
        while above and not os.path.lexists(above):
            missing.append(above)
            above = os.path.dirname(above)
        try:
            os.makedirs(path, exist_ok=True)
            for folder in missing:
                _sync_folder(os.path.dirname(folder) or ".")
            return
        except FileNotFoundError as error:
            gone = error
    raise StorageError(f"{path}: the folder cannot be made: {gone.strerror}") from gone


def _give_name(draft: str, path: str) -> None:
    """Make a draft visible under a new name.

    Raises:
        FileExistsError: The name is taken.
    """
    try:
        os.link(draft, path)  # a link fails if the name is taken; a rename would replace the file
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # The name comes first, then the content: a reader between the two finds an empty file.
        with open(path, "xb"):
            os.rename(draft, path)
