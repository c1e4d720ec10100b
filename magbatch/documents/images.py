"""Image files -> upright RGB images at the size in which the model sees them.

Nothing is decoded before its size was checked, and no image is larger than the model's grid.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from magbatch.errors import ErrorCode, RowError
from magbatch.rows import Image

# Not all that Pillow knows: PostScript would start Ghostscript, and some take any text that begins as they do.
FORMATS = (
    *("PNG", "JPEG", "JPEG2000", "TIFF", "WEBP", "GIF", "AVIF", "BMP", "DIB", "PPM", "ICO", "TGA", "PCX", "PSD"),
    *("QOI", "SGI", "ICNS"),
)

# The size is checked here, from the header, against the job's own limit.
Pillow.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """The sizes that a model's vision encoder takes.

    Attributes:
        longest_side: Pixels; larger images are scaled down to it.
        cell: Pixels of the side of one image token; both sides become multiples of it.
    """

    longest_side: int
    cell: int

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """The size in which the model sees an image (Mistral's rule, as in mistral_common's ImageEncoder)."""
        ratio = max(width / self.longest_side, height / self.longest_side)
        if ratio > 1:
            width, height = max(round(width / ratio), 1), max(round(height / ratio), 1)
        return ((width - 1) // self.cell + 1) * self.cell, ((height - 1) // self.cell + 1) * self.cell


def decode(data: bytes, max_pixels: int, grid: ImageGrid, origin: str) -> Image:
    """Decode one image file into what the model sees; of an animation, its first picture.

    Args:
        data: One of `FORMATS`; CMYK, palette and 16-bit included.
        max_pixels: Checked from the header, before anything is decoded.
        grid: The sizes that the model takes.
        origin: Where the image came from, for messages.

    Raises:
        RowError: `image_unreadable` or `image_too_large`.
    """
    try:
        with open_image(data) as opened:
            return shown(opened, max_pixels, grid, origin)
    except RowError:
        raise
    except Exception as error:  # Pillow's decoders have no one class for what can be wrong with a file
        raise RowError(ErrorCode.IMAGE_UNREADABLE, f"{origin}: not an image that can be decoded: {error}") from error


def open_image(data: bytes) -> Pillow.Image:
    """An image file whose header was read; raises whatever Pillow's openers raise."""
    return Pillow.open(io.BytesIO(data), formats=FORMATS)


def shown(opened: Pillow.Image, max_pixels: int, grid: ImageGrid, origin: str) -> Image:
    """The frame at which an opened file stands, as the model sees it; raises whatever Pillow's decoders raise."""
    width, height = opened.size
    if width * height > max_pixels:
        raise RowError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{origin}: {width} x {height} pixels, above limits.max_image_pixels = {max_pixels}",
        )
    opened.load()
    pixels = np.asarray(_to_rgb(ImageOps.exif_transpose(opened)), dtype=np.float32)
    size = grid.fit(pixels.shape[1], pixels.shape[0])
    if size != (pixels.shape[1], pixels.shape[0]):
        # The interpolation that Mistral's own preprocessing uses: vLLM then finds nothing left to resize.
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    rgb: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return Image.of(size[0], size[1], rgb.data)


def _to_rgb(image: Pillow.Image) -> Pillow.Image:
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits a channel: convert("RGB") would clip, not scale
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        # 32 bits say nothing about the range that is used, 16 bits do.
        wide = image.mode.startswith("I;16") or values.max(initial=0.0) > 255
        scaled = np.clip(values / 257 if wide else values, 0, 255)
        return Pillow.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        white = Pillow.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")
