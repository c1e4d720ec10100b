"""Decode image files in child processes, within limits of time and memory.

Every file ends as an image or as a `RowError`: a crash, an endless loop or too much memory harms only the child
process and that row. On kernels with Landlock and seccomp the child also cannot connect anywhere, write files, or read
files other than its own packages. On other kernels it can; see `magbatch.sandbox.confine`.
"""

from collections.abc import Callable, Iterator
from typing import Any

from magbatch.documents.images import ImageGrid, decode
from magbatch.errors import ErrorCode, RowError, SandboxError, SandboxMemoryError, SandboxTimeoutError
from magbatch.rows import Image
from magbatch.sandbox import Sandboxes

# Upper bound of a decoder's memory for one pixel: JPEG 2000 holds four bytes a channel, and the picture as well.
BYTES_A_PIXEL = 20
LEAST_MB = 512  # memory for a strip in 64 bits, the picture while it is narrowed, and the decoders' own tables


def memory_mb(max_pixels: int, max_bytes: int) -> int:
    """Return the megabytes that decoding one image file may take.

    Args:
        max_pixels: Largest number of pixels of an image.
        max_bytes: Largest size of an image file in bytes.
    """
    return LEAST_MB + (BYTES_A_PIXEL * max_pixels + 2 * max_bytes) // 10**6


class Decoders:
    """Pool of processes that decode image files. Threads may share it.

    Args:
        count: Largest number of processes; each is started when it is first needed.
        grid: Image sizes that the model takes.
        max_pixels: Largest number of pixels of an image.
        max_bytes: Largest size of an image file in bytes.
        timeout_s: Seconds after which the attempt at a file ends.
    """

    def __init__(self, count: int, grid: ImageGrid, max_pixels: int, max_bytes: int, timeout_s: float) -> None:
        self._head = {"max_pixels": max_pixels, "grid": [grid.longest_side, grid.cell]}
        self._timeout_s, self._memory_mb = timeout_s, memory_mb(max_pixels, max_bytes)
        self._sandboxes = Sandboxes(
            count, "magbatch.documents.decoder:handler", {}, timeout_s=timeout_s, memory_mb=self._memory_mb
        )

    def __call__(self, data: bytes, origin: str) -> Image:
        """Decode one image file; see `images.decode`.

        Args:
            data: Content of the file.
            origin: Column and position of the file in its row, for messages.

        Raises:
            RowError: `image_unreadable`, `image_too_large` or `image_timeout`.
            ClusterError: The process cannot be started on this machine.
        """
        try:
            (reply,) = self._sandboxes(self._head | {"origin": origin}, data)
        except SandboxTimeoutError as error:
            raise RowError(
                ErrorCode.IMAGE_TIMEOUT, f"{origin}: not decoded within limits.image_timeout_s = {self._timeout_s:g}"
            ) from error
        except SandboxMemoryError as error:
            raise RowError(
                ErrorCode.IMAGE_TOO_LARGE,
                f"{origin}: decoding takes more than the {self._memory_mb:,} MB that limits.max_image_pixels allows",
            ) from error
        except SandboxError as error:
            raise RowError(
                ErrorCode.IMAGE_UNREADABLE, f"{origin}: not an image that can be decoded: {error}"
            ) from error
        assert reply.body is not None
        return Image(reply.head["width"], reply.head["height"], reply.body)

    def close(self) -> None:
        """End the processes."""
        self._sandboxes.close()


def handler(_setup: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Iterator[tuple[dict[str, Any], bytes | None]]]:
    """Return the function that decodes requests in the child process."""
    import cv2
    from PIL import Image as Pillow

    Pillow.init()  # load the decoders before the memory limit applies
    cv2.setNumThreads(1)
    return _decoded


def _decoded(head: dict[str, Any], data: bytes) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    image = decode(data, head["max_pixels"], ImageGrid(*head["grid"]), head["origin"])
    yield {"width": image.width, "height": image.height}, image.packed
