"""The store protocol: the few operations that the ledger needs of a disk or a bucket."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object as a listing shows it.

    Attributes:
        name: Name relative to the store's root; for input files the whole path or URL.
        size: Size in bytes.
        tag: Text that changes when the content does: the ETag on S3, the modification time (ns) on a disk.
    """

    name: str
    size: int
    tag: str


class Store(Protocol):
    """A folder or bucket prefix that holds whole objects, each under a name relative to its root.

    An object is visible whole or not at all: readers never see half a write. A write is on the disk, or
    acknowledged by the bucket, before the call returns.

    Every operation raises `StorageError` if the storage refuses it or does not answer. `StorageError.passing` tells
    whether the same call may succeed later.

    Attributes:
        root: Local directory, or s3://bucket/prefix.
        patience_s: Seconds for which an operation is retried while it is refused for now; 0 raises at once.
    """

    root: str
    patience_s: float

    def read(self, name: str) -> bytes:
        """Return the whole object.

        Raises:
            FileNotFoundError: The object does not exist.
        """

    def read_end(self, name: str, size: int) -> bytes:
        """Return the last `size` bytes of an object; the whole object if it is smaller.

        Raises:
            FileNotFoundError: The object does not exist.
        """

    def write(self, name: str, data: bytes) -> None:
        """Make the object visible, whole. An older object of this name is replaced in the same moment."""

    def create(self, name: str, data: bytes) -> bool:
        """Make the object visible, whole, unless the name is taken. Of several concurrent calls, one succeeds.

        A retry after a lost reply finds the object of the first try. It counts as the caller's own if it holds
        `data`. So `data` should differ from anything that another process would write.

        Returns:
            True if the object now holds `data`; False if the name was taken, and the object there is unchanged.
        """

    def replace(self, name: str, data: bytes, old: bytes) -> bool:
        """Replace an object that holds `old`. Of several concurrent calls, one succeeds.

        Returns:
            True if the object now holds `data`; False if it held something else than `old`, or did not exist.
        """

    def keeps_conditions(self, name: str, data: bytes) -> bool:
        """Test that this store honours the conditions of `create` and `replace`, on an object that exists.

        Two writes are tried whose conditions are false. A store that ignores a condition leaves `data` in the object.

        Returns:
            Whether the store refused both writes.
        """

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """List the objects whose names start with a prefix, in the order of their names.

        Args:
            prefix: Start of the names; it may end in the middle of a name.
            after: Name after which the listing starts, in the order of code points.
        """

    def move(self, name: str, target: str) -> None:
        """Rename an object. A name that does not exist is not an error: the object may have been moved already."""

    def delete(self, name: str) -> None:
        """Remove an object. A name that does not exist is not an error."""
