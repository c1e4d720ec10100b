"""Decode image files to upright RGB images at the size in which the model sees them.

Every size is checked before anything is decoded, and the result is never larger than the model's grid. The decoders are
native code on untrusted bytes: call `decode` only in a process that may crash (see `decoder`).
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from magbatch.documents.image_files import bounded, check_size, open_image, plain
from magbatch.documents.samples import Raster, raster, strips
from magbatch.errors import ErrorCode, RowError
from magbatch.rows import Image

MOST_STRETCH = 8.0  # largest ratio between the resolutions of the two sides (faxes: 2); more is a mistake in the file
_ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 0x0112, 322, 323  # tags of TIFF and EXIF
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_INTEGERS = {1: 1, 3: 2, 4: 4}  # EXIF's integer types, and their sizes in bytes


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """Image sizes that a model's vision encoder takes.

    Attributes:
        longest_side: Longest side in pixels; larger images are scaled down to it.
        cell: Side of one image token in pixels; both sides of an image become multiples of it.
    """

    longest_side: int
    cell: int

    def fit(self, width: float, height: float) -> tuple[int, int]:
        """Return the width and height in which the model sees an image.

        The rule is that of mistral_common's `ImageEncoder`.

        >>> ImageGrid(1540, 28).fit(3000, 1000)
        (1540, 532)
        """
        ratio = max(width / self.longest_side, height / self.longest_side)
        if ratio > 1:
            width, height = width / ratio, height / ratio
        width, height = max(round(width), 1), max(round(height), 1)
        return ((width - 1) // self.cell + 1) * self.cell, ((height - 1) // self.cell + 1) * self.cell


def decode(data: bytes, max_pixels: int, grid: ImageGrid, origin: str) -> Image:
    """Decode one image file to the image that the model sees; of an animation, the first picture.

    Args:
        data: Content of a file in one of `image_files.FORMATS`; CMYK, palette, 16 and 32 bits included.
        max_pixels: Largest number of pixels, checked before anything is decoded.
        grid: Image sizes that the model takes.
        origin: Column and position of the file in its row, for messages.

    Raises:
        RowError: `image_unreadable` or `image_too_large`.
        MemoryError: Decoding needs more memory than the process may use.
    """
    try:
        with open_image(data, max_pixels, origin) as opened:
            return shown(opened, max_pixels, grid, origin)
    except (RowError, MemoryError):
        raise
    except Exception as error:  # a row's boundary: Pillow's decoders share no class of errors
        message = f"{origin}: not an image that can be decoded: {plain(error)}"
        raise RowError(ErrorCode.IMAGE_UNREADABLE, message) from error


def shown(opened: Pillow.Image, max_pixels: int, grid: ImageGrid, origin: str) -> Image:
    """Decode the current frame of an opened file to the image that the model sees.

    Args:
        opened: Opened file, at the frame.
        max_pixels: Largest number of pixels.
        grid: Image sizes that the model takes.
        origin: Column and position of the file in its row, for messages.

    Raises:
        RowError: `image_too_large`: the picture has more than `max_pixels`.
        Exception: The file is damaged; the decoders share no class of errors.
    """
    tags = getattr(opened, "tag_v2", {})
    check_size(*opened.size, max_pixels, origin)
    check_size(_whole(tags.get(_TILE_WIDTH)), _whole(tags.get(_TILE_LENGTH)), max_pixels, f"{origin}: a tile of it")
    (across, down), turn = _stretch(opened), _whole(tags.get(_ORIENTATION))
    with bounded(max_pixels, origin):
        decoded = raster(opened)
    check_size(decoded.width, decoded.height, max_pixels, origin)
    turn = turn or _orientation(opened)
    if decoded.upright:
        across, down, turn = (down, across, 1) if turn > 4 else (across, down, 1)
    width, height = decoded.width * across, decoded.height * down
    # A quarter turn comes last, when the image is small; scaling commutes with it.
    size = grid.fit(height, width)[::-1] if turn > 4 else grid.fit(width, height)
    rgb = _turned(_resized(decoded, size), turn)
    return Image.of(rgb.shape[1], rgb.shape[0], np.ascontiguousarray(rgb).data)


def _resized(decoded: Raster, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resample a picture.

    The interpolation is that of Mistral's preprocessing, so vLLM has nothing left to resize. Large pictures are
    first narrowed strip by strip, then shortened. One call gives the same pixels, but would hold the whole picture in
    float32.

    Args:
        decoded: Decoded picture.
        size: Width and height in pixels.

    Returns:
        RGB pixels, uint8 (height, width, 3).
    """
    width, height = decoded.width, decoded.height
    rows = list(strips(width, height))
    if (width, height) == size:
        return _three(np.concatenate([decoded.strip(*some) for some in rows]))
    if len(rows) == 1:
        pixels = _cubic(decoded.strip(0, height).astype(np.float32), size)
    else:
        first = _cubic(decoded.strip(*rows[0]).astype(np.float32), (size[0], rows[0][1]))
        narrow = np.empty((height, *first.shape[1:]), np.float32)
        narrow[: rows[0][1]] = first
        for begin, end in rows[1:]:
            narrow[begin:end] = _cubic(decoded.strip(begin, end).astype(np.float32), (size[0], end - begin))
        pixels = _cubic(narrow, size)
    np.rint(pixels, out=pixels)
    return _three(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def _cubic(pixels: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), np.float32)


def _three(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels


def _turned(rgb: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn a picture upright.

    Args:
        rgb: Pixels, uint8 (height, width, 3).
        orientation: EXIF's orientation, 1 to 8.

    Returns:
        Pixels, uint8; (width, height, 3) for orientations 5 to 8.
    """
    if orientation > 4:
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    return rgb


def _orientation(opened: Pillow.Image) -> int:
    """Return the orientation of a loaded picture, 1 to 8, from EXIF, else from XMP; 1 (upright) without either."""
    info = opened.info
    block = info.get("exif", b"")
    if not block and "Raw profile type exif" in info:  # ImageMagick's form: three lines of header, then hexadecimal
        text = "".join(str(info["Raw profile type exif"]).split("\n")[3:])
        block = bytes.fromhex(text) if re.fullmatch(r"([0-9a-fA-F]{2})*", text) else b""
    found = _exif_orientation(bytes(block).removeprefix(b"Exif\0\0"))
    if found is not None:
        return found
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else bytes(xmp))
    return int(match[1]) if match else 1


def _exif_orientation(block: bytes) -> int | None:
    """Return the orientation in a block of EXIF, even if the rest is damaged; None if it has none.

    EXIF is a TIFF file (TIFF 6.0, section 2): a header, then a directory. Each of its entries has 12 bytes: tag, type,
    count, and a value of up to 4 bytes (a longer value is elsewhere).
    """
    order: Literal["little", "big"] | None = {b"II": "little", b"MM": "big"}.get(block[:2])  # type: ignore[assignment]
    if order is None or len(block) < 8:
        return None
    at = int.from_bytes(block[4:8], order)
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(block[at : at + 2], order), 12):
        head = block[entry : entry + 12]
        if len(head) == 12 and int.from_bytes(head[:2], order) == _ORIENTATION:
            size = _INTEGERS.get(int.from_bytes(head[2:4], order), 0)
            value = int.from_bytes(head[8 : 8 + size], order)
            return value if 1 <= value <= 8 else None
    return None


def _stretch(opened: Pillow.Image) -> tuple[float, float]:
    """Return the factors across and down that make a picture's pixels square; those of faxes are not.

    For example, 200 dpi across and 100 dpi down give (1.0, 2.0).
    """
    found = opened.info.get("dpi") or opened.info.get("resolution") or opened.info.get("jfif_density")
    if not isinstance(found, tuple) or len(found) != 2:
        return 1.0, 1.0
    try:
        across, down = (float(one) for one in found)
    except (TypeError, ValueError, ZeroDivisionError):  # the resolution is text, or 0/0
        return 1.0, 1.0
    if not (across > 0 and down > 0) or not 1 / MOST_STRETCH <= across / down <= MOST_STRETCH:
        return 1.0, 1.0
    finest = max(across, down)
    return finest / across, finest / down


def _whole(value: Any) -> int:
    """Return a tag's value if it is a whole number, else 0."""
    return value if isinstance(value, int) else 0
