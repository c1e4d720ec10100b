"""Render documents in child processes, within limits of time and memory.

Every document ends as pages or as a `RowError`: a crash, an endless loop or too much memory harms only the child
process and that row. On kernels with Landlock and seccomp the child also cannot connect anywhere, write files, or read
files other than its own packages. On other kernels it can; see `magbatch.sandbox.confine`.
"""

from collections.abc import Callable, Iterator
from typing import Any

from magbatch.documents.pages import Want, read_pages
from magbatch.errors import ErrorCode, RowError, SandboxError, SandboxMemoryError, SandboxTimeoutError
from magbatch.rows import Image, Page
from magbatch.sandbox import Sandboxes

Replies = Iterator[tuple[dict[str, Any], bytes | None]]


class Renderers:
    """Pool of processes that render documents. Threads may share it.

    Args:
        count: Largest number of processes; each is started when it is first needed.
        timeout_s: Seconds after which the attempt at a document ends.
        memory_mb: Megabytes that a document may take.
    """

    def __init__(self, count: int, timeout_s: float, memory_mb: int) -> None:
        self._timeout_s, self._memory_mb = timeout_s, memory_mb
        self._sandboxes = Sandboxes(
            count, "magbatch.documents.renderer:handler", {}, timeout_s=timeout_s, memory_mb=memory_mb
        )

    def __call__(self, data: bytes, want: Want) -> tuple[int, list[Page]]:
        """Render one document.

        Args:
            data: Content of the file.
            want: Pages, pictures and text that are wanted.

        Returns:
            Number of pages of the document, and the wanted pages.

        Raises:
            RowError: The document gives no pages; its code tells why.
            ClusterError: The process cannot be started on this machine.
        """
        try:
            *pages, total = self._sandboxes(want.to_dict(), data)
        except SandboxTimeoutError as error:
            raise RowError(
                ErrorCode.DOCUMENT_TIMEOUT,
                f"not rendered within limits.document_timeout_s = {self._timeout_s:g}",
            ) from error
        except SandboxMemoryError as error:
            raise RowError(
                ErrorCode.DOCUMENT_TOO_LARGE, f"rendering needs more than limits.document_memory_mb = {self._memory_mb}"
            ) from error
        except SandboxError as error:
            raise RowError(
                ErrorCode.DOCUMENT_UNREADABLE, f"{error}: damaged, or above limits.document_memory_mb"
            ) from error
        return total.head["total"], [_page(reply.head, reply.body) for reply in pages]

    def close(self) -> None:
        """End the processes."""
        self._sandboxes.close()


def _page(head: dict[str, Any], body: bytes | None) -> Page:
    image = Image(head["size"][0], head["size"][1], body) if body is not None else None
    return Page(head["number"], head["text"], image, head["blank"])


def handler(_setup: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Replies]:
    """Return the function that renders in the child process: a reply for each page, then one with their number."""
    import cv2

    import magbatch.documents.pdf  # noqa: F401 - loaded before the memory limit applies

    cv2.setNumThreads(1)
    return _render


def _render(wanted: dict[str, Any], data: bytes) -> Replies:
    try:
        total, pages = read_pages(data, Want.from_dict(wanted))
        for page in pages:
            image = page.image
            size = [image.width, image.height] if image is not None else None
            head = {"number": page.number, "text": page.text, "size": size, "blank": page.blank}
            yield head, image.packed if image is not None else None
    except (RowError, MemoryError):
        raise
    except Exception as error:  # a row's boundary: decoders raise errors of any type
        raise RowError(ErrorCode.DOCUMENT_UNREADABLE, f"{type(error).__name__}: {error}") from error
    yield {"total": total}, None
