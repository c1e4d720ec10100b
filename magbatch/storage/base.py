"""What a place for objects does, and how a listing shows them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


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
    """A folder or bucket prefix that holds whole objects.

    Attributes:
        root: Local directory, or s3://bucket/prefix without a slash at its end.
        patience_s: Seconds for which a refusal that may pass is waited out before it is raised; 0: raised at once.
    """

    root: str
    patience_s: float

    def read(self, name: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: No such object.
            StorageError: The storage refuses.
        """

    def read_end(self, name: str, size: int) -> bytes:
        """The last `size` bytes of an object, or all of a smaller one; raises as `read` does."""

    def write(self, name: str, data: bytes) -> None:
        """Make the object visible, whole; an older one by this name is replaced at once."""

    def create(self, name: str, data: bytes) -> bool:
        """Make the object visible, whole, unless one by this name is there: then False, and it stays as it is.

        What is written should be unlike what anybody else would write: an own write whose answer was lost is
        known by its content.
        """

    def replace(self, name: str, data: bytes, old: bytes) -> bool:
        """Make the object visible, whole, in the place of one that holds `old`: False where another is there, or none.

        Of several that try at once, one succeeds.
        """

    def keeps_conditions(self, name: str, data: bytes) -> bool:
        """Whether the store refuses what `create` and `replace` rest on, tried on an object that is there.

        Two writes that must not happen are asked for. A store that takes one leaves `data` in the object.
        """

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """The objects whose name begins with prefix, in the order of their names; none where nothing is.

        Args:
            prefix: May end within a name.
            after: Only names that come after this one, in the order of code points.
        """

    def move(self, name: str, target: str) -> None:
        """Rename an object; one that is gone already is no error."""

    def delete(self, name: str) -> None:
        """Remove an object; one that is gone already is no error."""
