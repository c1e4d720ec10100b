"""Image files that libraries do not write: of odd samples, with odd chunks, or hostile."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

Tag = tuple[int, int, Sequence[Any]]
SHORT, LONG, RATIONAL = 3, 4, 5


def drawn(width: int = 56, height: int = 28) -> Pillow.Image:
    """White, with a dark corner at the upper left: which way up it is, and what is dark, shows."""
    image = Pillow.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).rectangle((0, 0, width // 4 - 1, height // 2 - 1), fill=(40, 40, 40))
    return image


def grey(width: int = 56, height: int = 28) -> NDArray[np.float64]:
    """The same in shares of white."""
    return np.asarray(drawn(width, height).convert("L")).astype(np.float64) / 255


def encoded(image: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def tiff_of(
    values: NDArray[Any], *, big: bool = False, packed: bool = False, photometric: int = 1, tags: Sequence[Tag] = ()
) -> bytes:
    """A TIFF of values as they are: (height, width) or (height, width, channels), of any type."""
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    data = values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes()
    data = zlib.compress(data) if packed else data
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries: list[Tag] = [
        (256, LONG, [width]), (257, LONG, [height]), (258, SHORT, [8 * values.dtype.itemsize] * channels),
        (259, SHORT, [8 if packed else 1]), (262, SHORT, [photometric]), (277, SHORT, [channels]),
        (278, LONG, [height]), (279, LONG, [len(data)]), (339, SHORT, [kind] * channels), *tags,
    ]  # fmt: skip
    return tiff_file(entries, data, 273, big=big)


def tiff_file(entries: Sequence[Tag], data: bytes, offsets: int, *, big: bool = False) -> bytes:
    """A TIFF of tags, and of one block of data to which the tag `offsets` points."""
    order = ">" if big else "<"
    entries = sorted([*entries, (offsets, LONG, [0])])
    body = 8 + 2 + 12 * len(entries) + 4
    head = (b"MM" if big else b"II") + struct.pack(order + "HIH", 42, 8, len(entries))
    extra = b""
    for tag, kind, values in entries:
        form = {SHORT: "H", LONG: "I", RATIONAL: "II", 1: "B"}[kind]
        value = (
            bytes(values)
            if kind == 1
            else b"".join(struct.pack(order + form, *(one if kind == RATIONAL else [one])) for one in values)
        )
        if tag == offsets:
            head += struct.pack(order + "HHI", tag, kind, 1) + b"\0DAT"
        elif len(value) <= 4:
            head += struct.pack(order + "HHI", tag, kind, len(values)) + value.ljust(4, b"\0")
        else:
            head += struct.pack(order + "HHII", tag, kind, len(values), body + len(extra))
            extra += value + b"\0" * (len(value) % 2)
    place = struct.pack(order + "I", body + len(extra))
    return head.replace(b"\0DAT", place) + struct.pack(order + "I", 0) + extra + data


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks after its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def empty_png(side: int) -> bytes:
    """A square of one bit a pixel, all black: small, whatever its side."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ico(picture: bytes) -> bytes:
    """An icon that says it has 256 x 256 pixels, around a PNG or a bitmap."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(picture), 22) + picture


def icns(picture: bytes) -> bytes:
    """Apple's icon of 512 x 512 pixels, around a PNG or JPEG 2000."""
    return b"icns" + struct.pack(">I4sI", 16 + len(picture), b"ic09", 8 + len(picture)) + picture


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 64 x 64 pixels in one tile of any size."""
    data = zlib.compress(bytes(side * side // 8), 9)
    sizes: list[Tag] = [(256, LONG, [64]), (257, LONG, [64]), (322, LONG, [side]), (323, LONG, [side])]
    kinds: list[Tag] = [(258, SHORT, [1]), (259, SHORT, [8]), (262, SHORT, [1]), (277, SHORT, [1])]
    return tiff_file([*sizes, *kinds, (325, LONG, [len(data)])], data, 324)


def many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(Pillow.new("RGB", (side, side), (90, 120, 200)), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"
