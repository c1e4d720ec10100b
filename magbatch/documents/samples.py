"""Convert samples of any type to 8 bits, in strips of about a megapixel, so that little is held in wide numbers.

Pillow decodes files with 8 bits a sample. OpenCV decodes TIFF files with wider, signed or floating samples, which
Pillow would wrap, byte-swap or refuse.
"""

import functools
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms, ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

STRIP_PIXELS = 1 << 20
GREATEST = 1e30  # larger values stand for "no data"
UNIT = 8.0  # a floating picture whose values stay below this has 1.0 as white; highlights may exceed it
_UNSIGNED = 1  # TIFF's SampleFormat
_WHITE_IS_ZERO = 0  # TIFF's PhotometricInterpretation

Bytes = NDArray[np.uint8]
Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Raster:
    """A decoded picture whose strips are converted to 8 bits on demand.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        upright: Whether the decoder has already turned the picture by the file's orientation; true for TIFF.
        strip: Callable from the first row and the row after the last to samples, uint8: grey (rows, width), or RGB
            (rows, width, 3).
    """

    width: int
    height: int
    upright: bool
    strip: Callable[[int, int], Bytes]


def raster(opened: Pillow.Image) -> Raster:
    """Decode the current frame of an opened file.

    Raises:
        Exception: The file is damaged; the decoders share no class of errors.
    """
    tags = getattr(opened, "tag_v2", {})
    bits, kind = _first(tags.get(BITSPERSAMPLE, 8)), _first(tags.get(SAMPLEFORMAT, _UNSIGNED))
    numbers = opened.mode.startswith(("I", "F")) or kind != _UNSIGNED
    if opened.format == "TIFF" and numbers and bits != 12:
        values = _by_opencv(opened)
        photometric = tags.get(PHOTOMETRIC_INTERPRETATION, _WHITE_IS_ZERO)
        return _of_values(values, *_range(values), upright=True, inverted=photometric == _WHITE_IS_ZERO)
    opened.load()
    if opened.mode.startswith(("I", "F")):
        values = np.asarray(opened)
        bottom, top = _range(values) if opened.mode == "F" else (0.0, 4095.0 if bits == 12 else 65535.0)
        return _of_values(values, bottom, top, upright=opened.format == "TIFF")
    width, height = opened.size
    return Raster(width, height, opened.format == "TIFF", lambda begin, end: _rgb(opened.crop((0, begin, width, end))))


def strips(width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the row after the last of strips of about a megapixel each.

    >>> list(strips(1 << 19, 5))
    [(0, 2), (2, 4), (4, 5)]
    """
    rows = max(1, STRIP_PIXELS // max(1, width))
    return ((begin, min(begin + rows, height)) for begin in range(0, height, rows))


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


def _by_opencv(opened: Pillow.Image) -> Values:
    """Return the samples of a TIFF's current frame in their own dtype: (height, width), or RGB (height, width, 3)."""
    assert isinstance(opened, ImageFile.ImageFile)
    assert isinstance(opened.fp, io.BytesIO)
    frame = opened.tell()
    data = np.frombuffer(opened.fp.getbuffer(), np.uint8)
    decoded, frames = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(frame, frame + 1))
    if not decoded or not frames:
        raise ValueError("the TIFF is damaged, or its samples are of a type that is not supported")
    values: Values = np.asarray(frames[0])
    if values.ndim == 3:
        values = values[..., 2::-1] if values.shape[2] >= 3 else values[..., 0]
    return values


def _range(values: Values) -> tuple[float, float]:
    """Return the values that stand for black and white.

    Unsigned integers of 8 and 16 bits use their whole range. Files of other types do not name their range. It is
    taken to be the first of these ranges that holds all values: 0..1 (floating values only), 0..255, and their own.

    Args:
        values: Samples of the picture, of any dtype.
    """
    if values.dtype in (np.uint8, np.uint16):
        return 0.0, float(np.iinfo(values.dtype).max)
    low, high = 0.0, 0.0
    for begin, end in strips(values.shape[1], values.shape[0]):
        strip = values[begin:end].astype(np.float64)
        there = strip[np.abs(strip) < GREATEST]  # drops NaN too
        if there.size:
            low, high = min(low, float(there.min())), max(high, float(there.max()))
    if low < 0:
        return low, high
    if values.dtype == np.int8:
        return 0.0, 127.0
    if values.dtype.kind == "f" and high <= UNIT:
        return 0.0, max(high, 1.0)
    return 0.0, max(high, 255.0)


def _of_values(values: Values, bottom: float, top: float, *, upright: bool, inverted: bool = False) -> Raster:
    return Raster(values.shape[1], values.shape[0], upright, functools.partial(_scaled, values, bottom, top, inverted))


def _scaled(values: Values, bottom: float, top: float, inverted: bool, begin: int, end: int) -> Bytes:
    shares = (values[begin:end].astype(np.float64) - bottom) * (255 / (top - bottom))
    np.nan_to_num(shares, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    np.clip(shares, 0, 255, out=shares)
    scaled: Bytes = np.rint(255 - shares if inverted else shares).astype(np.uint8)
    return scaled


def _rgb(image: Pillow.Image) -> Bytes:
    """Return the samples of a strip that Pillow decoded: uint8 (rows, width), or RGB (rows, width, 3)."""
    if image.mode == "LAB":
        return np.asarray(ImageCms.applyTransform(image, _lab()))
    if "A" in image.getbands() or "transparency" in image.info:
        white = Pillow.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return np.asarray(image if image.mode == "L" else image.convert("RGB"))


@functools.cache
def _lab() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
