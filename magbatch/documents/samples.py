"""Samples of any kind -> 8 bits, in strips: about a megapixel is held in wide numbers at once.

Pillow decodes what has 8 bits a sample. OpenCV decodes TIFF files of wider, signed and floating samples, whose values
Pillow would wrap, swap or refuse.
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
GREATEST = 1e30  # of a value: what is above stands for "no data"
UNIT = 8.0  # floating values up to this are shares of white, a little more where it is very bright
_UNSIGNED = 1  # TIFF's SampleFormat
_WHITE_IS_ZERO = 0  # TIFF's PhotometricInterpretation

Bytes = NDArray[np.uint8]
Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Raster:
    """A decoded picture, of which strips are made into bytes when they are asked for.

    Attributes:
        width: Pixels.
        height: Pixels.
        upright: Whether the decoder has turned it by the file's orientation, as both do for TIFF.
        strip: From the first row and the row after the last to uint8 samples: (rows, width), or (rows, width, 3) RGB.
    """

    width: int
    height: int
    upright: bool
    strip: Callable[[int, int], Bytes]


def raster(opened: Pillow.Image) -> Raster:
    """Decode the frame at which a file stands; raises whatever the decoders raise."""
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
    """First rows, and rows after the last, of strips of about a megapixel."""
    rows = max(1, STRIP_PIXELS // max(1, width))
    return ((begin, min(begin + rows, height)) for begin in range(0, height, rows))


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


def _by_opencv(opened: Pillow.Image) -> Values:
    """The values of a TIFF's frame as the file has them: (height, width), or (height, width, 3) RGB."""
    assert isinstance(opened, ImageFile.ImageFile)
    assert isinstance(opened.fp, io.BytesIO)
    frame = opened.tell()
    data = np.frombuffer(opened.fp.getbuffer(), np.uint8)
    decoded, frames = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(frame, frame + 1))
    if not decoded or not frames:
        raise ValueError("a TIFF that is damaged, or whose samples are of a kind that is not read")
    values: Values = np.asarray(frames[0])
    if values.ndim == 3:
        values = values[..., 2::-1] if values.shape[2] >= 3 else values[..., 0]
    return values


def _range(values: Values) -> tuple[float, float]:
    """The values that are black and white.

    Unsigned numbers of 8 and 16 bits have a range of their own. Others do not say which part of theirs they use: it
    is the least of 0..1 (where they are floating), 0..255, and their own, that holds them all.
    """
    if values.dtype in (np.uint8, np.uint16):
        return 0.0, float(np.iinfo(values.dtype).max)
    low, high = 0.0, 0.0
    for begin, end in strips(values.shape[1], values.shape[0]):
        strip = values[begin:end].astype(np.float64)
        there = strip[np.abs(strip) < GREATEST]  # NaN is not below it either
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
    """A strip that Pillow decoded, in 8 bits a sample."""
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
