"""Decode bytes as text if they are text, even if it starts like an image file ("BM", "P1")."""

import codecs
import re

# Control characters of binary files; text may hold white space, form feeds and the escape of terminals.
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_BETWEEN = rb"(?:\s|#[^\n]*\n)+"
_MAP = re.compile(
    rb"P(?:([14])" + _BETWEEN + rb"(\d{1,9})" + _BETWEEN + rb"(\d{1,9})"
    rb"|([2356])" + _BETWEEN + rb"(\d{1,9})" + _BETWEEN + rb"(\d{1,9})" + _BETWEEN + rb"(\d{1,5}))\s"
)  # fmt: skip
# The longer marks come first: UTF-32's little-endian mark starts with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decoded(data: bytes) -> str:
    """Decode text in UTF-8, or in the encoding that its byte order mark names.

    Raises:
        UnicodeDecodeError: The bytes are not text in that encoding.
    """
    return data.decode(next((encoding for mark, encoding in _MARKS if data.startswith(mark)), "utf-8-sig"))


def plain_text(data: bytes) -> str | None:
    """Return the text that the bytes hold; None for other bytes, for control characters, and for printable images."""
    try:
        text = decoded(data)
    except UnicodeDecodeError:
        return None
    return None if _BINARY.search(text) or _is_portable_map(data) else text


def _is_portable_map(data: bytes) -> bool:
    """Whether bytes are a PBM, PGM or PPM image, which may consist of printable characters only.

    "P1 2 3 of the plan are done" starts with such a header. An image also has exactly as many samples as its header
    says.

    Source: netpbm's pbm(5), pgm(5), ppm(5).
    """
    header = _MAP.match(data)
    if header is None:
        return False
    bits, width, height = (header[1], header[2], header[3]) if header[1] else (header[4], header[5], header[6])
    kind, columns, rows, rest = int(bits), int(width), int(height), data[header.end() :]
    if kind == 1:
        return re.fullmatch(rb"[01]{%d}" % (columns * rows), b"".join(rest.split())) is not None
    samples = columns * rows * (3 if kind in (3, 6) else 1)
    if kind in (2, 3):
        values = rest.split()
        return len(values) == samples and all(value.isdigit() for value in values)
    size = (columns + 7) // 8 * rows if kind == 4 else samples * (2 if int(header[7]) > 255 else 1)
    return len(rest) >= size and not rest[size:].strip()
