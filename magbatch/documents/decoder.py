"""Image files -> images, in processes in which a file that is damaged, hostile or endless harms nothing else.

Every file ends here within its time and its memory, as an image or as a `RowError`.
"""

from collections.abc import Callable, Iterator
from typing import Any

from magbatch.documents.images import ImageGrid, decode
from magbatch.errors import ErrorCode, RowError, SandboxError, SandboxMemoryError, SandboxTimeoutError
from magbatch.rows import Image
from magbatch.sandbox import Sandboxes

# The most that a decoder holds of one pixel: JPEG 2000 keeps four bytes a channel beside the picture that it makes.
BYTES_A_PIXEL = 20
LEAST_MB = 512  # one strip in 64 bits, the picture while it is made narrow, and the decoders' own tables


def memory_mb(max_pixels: int, max_bytes: int) -> int:
    """Megabytes that decoding one image file may take.

    Args:
        max_pixels: Pixels that it may have.
        max_bytes: Bytes that it may have.
    """
    return LEAST_MB + (BYTES_A_PIXEL * max_pixels + 2 * max_bytes) // 10**6


class Decoders:
    """Decodes image files.

    Args:
        count: Processes at most; each is started when it is needed.
        grid: Sizes that the model takes.
        max_pixels: Pixels that one image may have.
        max_bytes: Bytes that one image file may have.
        timeout_s: Seconds that one image file may take.
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
            data: The file.
            origin: Place of the file in its row, for messages.

        Raises:
            RowError: `image_unreadable`, `image_too_large` or `image_timeout`.
            ClusterError: The process cannot be started here.
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
    """In the process: an image file in; the image out."""
    import cv2
    from PIL import Image as Pillow

    Pillow.init()  # decoders are loaded before the memory is bounded
    cv2.setNumThreads(1)
    return _decoded


def _decoded(head: dict[str, Any], data: bytes) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    image = decode(data, head["max_pixels"], ImageGrid(*head["grid"]), head["origin"])
    yield {"width": image.width, "height": image.height}, image.packed
