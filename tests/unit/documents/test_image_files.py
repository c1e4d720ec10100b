"""Image files open without the parts that their pixels do not need, within the limit, or are named as what they are."""

import struct
import zlib

import numpy as np
import pytest
from PIL import UnidentifiedImageError
from support.picture_files import chunk, drawn, empty_png, encoded, icns, ico, tiled_tiff, with_chunks

from magbatch.documents.image_files import bounded, check_size, open_image
from magbatch.documents.images import ImageGrid, decode
from magbatch.errors import ErrorCode, RowError


def refused(data: bytes) -> RowError:
    with pytest.raises(RowError) as caught:
        decode(data, 10**7, ImageGrid(1540, 28), "column 'scan'")
    return caught.value


def looks_drawn(data: bytes, tolerance: int = 3) -> None:
    with open_image(data, 10**7, "x") as opened:
        got = np.asarray(opened.convert("RGB")).astype(int)
    assert np.abs(got - np.asarray(drawn()).astype(int)).mean() <= tolerance


def test_what_a_png_says_beside_its_pixels_does_no_harm() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    chunks = {
        "profile": chunk(b"iCCP", b"x\0\0" + bomb),
        "text": chunk(b"zTXt", b"x\0\0" + bomb),
        "turn": chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
        "long text": chunk(b"tEXt", b"x\0" + bytes(3 << 20)),
        "no profile": chunk(b"iCCP", b"x\0\7zzz"),
        "a checksum": chunk(b"tEXt", b"x\0y")[:-4] + b"oops",
        "EXIF": chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        "unknown": chunk(b"zzZz", b"?"),
    }
    for name, one in chunks.items():
        looks_drawn(with_chunks(encoded(drawn()), one)), name
    looks_drawn(with_chunks(encoded(drawn()), *chunks.values()))


def test_a_damaged_index_of_several_pictures_does_no_harm() -> None:
    data = encoded(drawn(), "JPEG", quality=95)
    index = b"MPF\0MM\0*\0\0\0\x08\0\1\xb0\0\0\7\0\0\0\4" + b"0100"
    for segment in (
        b"\xff\xe2" + struct.pack(">H", 2 + len(index)) + index,
        b"\xff\xed\0\x20Photoshop 3.0\0" + b"8BIM" * 4,
    ):
        looks_drawn(data[:2] + segment + data[2:], 6)


BITMAP = struct.pack("<IiiHHIIiiII", 40, 30_000, 60_000, 1, 32, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "data",
    [ico(empty_png(4000)), icns(empty_png(4000)), tiled_tiff(4000), ico(BITMAP), icns(ico(empty_png(4000)))],
    ids=["PNG in an icon", "PNG in Apple's icon", "tile", "bitmap in an icon", "icon in an icon"],
)
def test_a_picture_within_a_file_is_held_against_the_limit(data: bytes) -> None:
    error = refused(data)
    assert error.code in (ErrorCode.IMAGE_TOO_LARGE, ErrorCode.IMAGE_UNREADABLE)
    if data[:4] != b"icns" or b"\0\0\1\0" not in data[:32]:
        assert error.code is ErrorCode.IMAGE_TOO_LARGE
        assert error.message.startswith("column 'scan': a ")
        assert "limits.max_image_pixels = 10000000" in error.message


def test_a_codestream_larger_than_its_box_says_is_held_against_the_limit() -> None:
    data = bytearray(encoded(drawn(), "JPEG2000"))
    at = data.find(b"\xff\x4f\xff\x51")
    data[at + 8 : at + 16] = struct.pack(">II", 60_000, 60_000)
    assert refused(bytes(data)).code is ErrorCode.IMAGE_TOO_LARGE


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it is empty"),
        (bytes(100), "null bytes"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIF"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "a video"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="4">', "SVG"),
        (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML"),
        (b"\n<HTML><head>", "HTML"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        (b'{"error": "not found"}', "JSON"),
        (b"%PDF-1.7\n", "PDF"),
        (b"PK\3\4\x14\0\6\0", "a ZIP archive or an Office document"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (b"\xff\x0a\xfa\x7f\x01", "JPEG XL"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ", "Base64"),
        (b"data:image/png;base64,iVBORw0KGgo", "data: URL"),
        (bytes(128) + b"DICM" + bytes(40), "DICOM"),
        (b"\x89PNG\r\n\x1a\n", "PNG, but damaged"),
        (b"\xff\xd8\xff\0\0", "JPEG, but damaged"),
        (b"Access denied for user", "text, which starts with 'Access denied for user'"),
        ("größer".encode() * 60, "text, which starts with"),
        (b"\x93\x01\x02\xfe\xff\x00\x9a\x10\x11\x12", "bytes 93 01 02 fe"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(data: bytes, words: str) -> None:
    with pytest.raises(UnidentifiedImageError, match=r"^it ") as caught:
        open_image(data, 10**7, "x")
    assert words in str(caught.value)


def test_a_size_is_checked_against_the_limit() -> None:
    check_size(1000, 1000, 10**6, "x")
    with pytest.raises(RowError, match=r"^x: 1000 x 1001 pixels, above limits\.max_image_pixels = 1000000$") as caught:
        check_size(1000, 1001, 10**6, "x")
    assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE


def test_pillows_limit_is_put_back() -> None:
    from PIL import Image as Pillow

    before = Pillow.MAX_IMAGE_PIXELS
    with pytest.raises(RowError, match="a picture within it is above"), bounded(5, "x"):
        raise Pillow.DecompressionBombError
    assert before == Pillow.MAX_IMAGE_PIXELS
