"""Open image files without the segments that their pixels do not need, or describe bytes that are not an image.

A damaged or oversized profile, text or comment does not stop a picture. The size of a picture within a file (an icon's,
a tile's, a codestream's) is checked before it is decoded. Pillow's openers are third-party code: call them only in a
process that may crash.
"""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

from PIL import Image as Pillow
from PIL import TiffImagePlugin, UnidentifiedImageError

from magbatch.errors import ErrorCode, RowError

# Not all formats of Pillow: PostScript would start Ghostscript, and some formats accept ordinary text.
FORMATS = (
    *("PNG", "JPEG", "JPEG2000", "TIFF", "WEBP", "GIF", "AVIF", "BMP", "DIB", "PPM", "ICO", "TGA", "PCX", "PSD"),
    *("QOI", "SGI", "ICNS"),
)
MAX_TEXT_BYTES = 1 << 20  # largest text of a PNG that is searched for the picture's orientation
_PNG, _JPEG, _CODESTREAM = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\x4f\xff\x51"
_PNG_KEPT = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"pHYs"}
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_TURNED_IN = {b"Raw profile type exif", b"XML:com.adobe.xmp"}
# TIFF files whose samples Pillow has no mode for are opened too; OpenCV decodes them (see `samples`).
for _order, (_photo, _count, _extra), _kind, _bits in product(
    (b"II", b"MM"), ((0, 1, ()), (1, 1, ()), (1, 2, (2,)), (2, 3, ()), (2, 4, (2,))), (1, 2, 3), (8, 16, 32, 64)
):
    TiffImagePlugin.OPEN_INFO.setdefault((_order, _photo, (_kind,), 1, (_bits,) * _count, _extra), ("F", "F"))

_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC"}
_BRANDS |= {b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}
_SIGNATURES = {
    _PNG: "PNG", _JPEG: "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"GIF8": "GIF",
    b"BM": "BMP", b"8BPS": "Photoshop", b"\0\0\1\0": "an icon (ICO)", b"icns": "an icon (ICNS)", b"qoif": "QOI",
    b"\0\0\0\x0cjP  ": "JPEG 2000", _CODESTREAM: "JPEG 2000", b"%PDF": "PDF", b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript (EPS)", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL",
    b"II\xbc": "JPEG XR", b"AT&TFORM": "DjVu", b"PK\3\4": "a ZIP archive or an Office document",
    b"\xd0\xcf\x11\xe0": "an older Office document", b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a RAR archive", b"DDS ": "DDS", b"v/1\1": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR", b"SIMPLE  =": "FITS", b"\xd7\xcd\xc6\x9a": "WMF",
    b"\x1aE\xdf\xa3": "a video (Matroska)", b"FUJIFILMCCD-RAW": "a camera's raw file", b"PAR1": "Parquet",
    b"{\\rtf": "RTF", b"OggS": "Ogg", b"ID3": "MP3", b"\x7fELF": "a program",
}  # fmt: skip
_TEXTS = (
    (rb"(<\?xml.{0,2000}?)?(<!--.{0,2000}?-->\s*)?(<!doctype svg.{0,2000}?>\s*)?<svg[\s>/]", "SVG"),
    (rb"(<!--.{0,2000}?-->\s*)?<(!doctype\s+html|html|head|body)\b", "HTML"),
    (rb"<\?xml", "XML"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself; run git lfs pull"),
    (rb"data:image/", "a data: URL in a column of bytes; put such URLs into a text column"),
    (rb"(iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkqA|TU0AK|JVBER)[\w+/=\s]", "text in Base64"),
    (rb"[{\[].*[}\]]\s*\Z", "JSON"),
)


def open_image(data: bytes, max_pixels: int, origin: str) -> Pillow.Image:
    """Open an image file and read its header.

    Args:
        data: Content of a file in one of `FORMATS`.
        max_pixels: Largest number of pixels of a picture, even of one within the file.
        origin: Column and position of the file in its row, for messages.

    Raises:
        RowError: `image_too_large`: a picture has more than `max_pixels`.
        UnidentifiedImageError: The bytes are not an image in one of `FORMATS`; the message says what they are.
        Exception: The header is damaged; Pillow's openers share no class of errors.
    """
    for width, height in _sizes_within(data):
        check_size(width, height, max_pixels, f"{origin}: a picture within it")
    decoded_at_once = data.startswith((b"\0\0\1\0", b"icns"))
    try:
        with bounded(max_pixels if decoded_at_once else None, origin):
            return Pillow.open(io.BytesIO(_bare(data)), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(described(data)) from error


@contextmanager
def bounded(max_pixels: int | None, origin: str) -> Iterator[None]:
    """Make Pillow check the size of every picture that it decodes in the block, even of pictures within a file.

    The limit is a global of Pillow, so only one thread of a process may decode.

    Args:
        max_pixels: Largest number of pixels; None for no limit.
        origin: Column and position of the file in its row, for messages.

    Raises:
        RowError: `image_too_large`: a picture has more than `max_pixels`.
    """
    before = Pillow.MAX_IMAGE_PIXELS
    Pillow.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about damaged tags: the picture can be decoded
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            yield
    except (Pillow.DecompressionBombWarning, Pillow.DecompressionBombError) as error:
        message = f"{origin}: a picture within it is above limits.max_image_pixels = {max_pixels}"
        raise RowError(ErrorCode.IMAGE_TOO_LARGE, message) from error
    finally:
        Pillow.MAX_IMAGE_PIXELS = before


def check_size(width: int, height: int, max_pixels: int, origin: str) -> None:
    """Check a size in pixels against the limit.

    Raises:
        RowError: `image_too_large`: a picture has more than `max_pixels`.
    """
    if width * height > max_pixels:
        raise RowError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{origin}: {width} x {height} pixels, above limits.max_image_pixels = {max_pixels}",
        )


def plain(error: Exception) -> str:
    """Return an error's message, or its type if it has none."""
    return str(error) or type(error).__name__


def described(data: bytes) -> str:
    """Describe bytes that could not be opened as an image, in words that start with "it is"."""
    if not data:
        return "it is empty"
    if not any(data[:4096]):
        return "it starts with null bytes only"
    name = _name(data)
    if name in {"PNG", "JPEG", "TIFF", "GIF", "BMP", "AVIF", "JPEG 2000", "WebP", "QOI", "Photoshop"}:
        return f"it is {name}, but damaged, cut off, or of a kind of {name} that is not supported"
    if name is not None:
        return f"it is {name}; write PNG, JPEG, TIFF or WebP"
    try:
        text = data[:256].decode()
    except UnicodeDecodeError as error:
        if error.start < len(data[:256]) - 4:
            return f"it is of an unknown kind; it starts with the bytes {data[:8].hex(' ')}"
        text = data[: error.start].decode()
    start = " ".join(text[:40].split())
    return f"it is text, which starts with {start!r}" if text.isprintable() or start else "it is blank text"


def _name(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "a video (MP4 or QuickTime)")
    if data.startswith(b"RIFF"):
        return "WebP" if data[8:12] == b"WEBP" else "a recording (RIFF)"
    if data[128:132] == b"DICM":
        return "DICOM"
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    text = data[:8192].removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name in _TEXTS:
        if re.match(pattern, text, re.IGNORECASE | re.DOTALL):
            return name
    return "PDF" if b"%PDF-" in data[:1024] else None


def _bare(data: bytes) -> bytes:
    """Return a PNG or JPEG file without the segments that its pixels do not need; other files unchanged."""
    if data.startswith(_PNG):
        kept = list(_png_ranges(data))
    elif data.startswith(_JPEG):
        kept = list(_jpeg_ranges(data))
    else:
        return data
    return b"".join([data[begin:end] for begin, end in kept])


def _png_ranges(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each range of a PNG that is kept; most files are one range."""
    begin = at = 0
    at += len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind not in _PNG_KEPT and not (kind in _PNG_TEXTS and _tells_the_turn(kind, data[at + 8 : end - 4])):
            keep = False
        else:  # Pillow does not need ancillary chunks: damaged ones are dropped
            ancillary = kind[0] & 0x20
            keep = not ancillary or zlib.crc32(data[at + 4 : end - 4]).to_bytes(4) == data[end - 4 : end]
        if not keep:
            yield begin, at
            begin = end
        at = end
        if kind == b"IEND":
            break
    yield begin, len(data)


def _tells_the_turn(kind: bytes, body: bytes) -> bool:
    """Whether a PNG's text chunk may hold the picture's orientation, and inflates to at most `MAX_TEXT_BYTES`."""
    keyword, _, rest = body.partition(b"\0")
    if keyword not in _TURNED_IN:
        return False
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] != b"\1"):
        return len(rest) <= MAX_TEXT_BYTES
    packed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(packed, MAX_TEXT_BYTES + 1)) <= MAX_TEXT_BYTES
    except zlib.error:
        return False


def _jpeg_ranges(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each range of a JPEG that is kept; profiles, previews and comments are dropped."""
    begin, at = 0, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in (0x00, 0x01, 0xDA) or 0xD0 <= marker <= 0xD9:
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        # Kept: JFIF (resolution), EXIF and XMP (orientation), Adobe (colours).
        if (0xE0 <= marker <= 0xEF or marker == 0xFE) and marker not in (0xE0, 0xE1, 0xEE):
            yield begin, at
            begin = end
        at = end
    yield begin, len(data)


def _sizes_within(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the width and height of pictures within a file that the file's own header does not tell."""
    if data.startswith(b"\0\0\1\0"):  # an icon's PNGs and bitmaps: Pillow decodes one when it opens the file
        for entry in range(6, min(6 + 16 * int.from_bytes(data[4:6], "little"), len(data) - 15), 16):
            at = int.from_bytes(data[entry + 12 : entry + 16], "little")
            if data[at : at + 8] == _PNG and len(data) >= at + 24:
                yield struct.unpack_from(">II", data, at + 16)
            elif len(data) >= at + 12:
                width, height = struct.unpack_from("<ii", data, at + 4)
                yield abs(width), abs(height) // 2  # the lower half is the mask
    at = data.find(_CODESTREAM) if data.startswith((_CODESTREAM, b"\0\0\0\x0cjP  ", b"icns")) else -1
    while at >= 0 and len(data) >= at + 40:
        right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">6I", data, at + 8)
        yield max(right - left, 0), max(bottom - top, 0)
        yield min(tile_width, right), min(tile_height, bottom)
        at = data.find(_CODESTREAM, at + 4)
