"""Image files look as they should whatever their samples, tags and chunks; the common ones are in test_render.py."""

import re
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms
from support.picture_files import (
    RATIONAL,
    SHORT,
    chunk,
    drawn,
    empty_png,
    encoded,
    grey,
    icns,
    ico,
    tiff_of,
    tiled_tiff,
    with_chunks,
)

from magbatch.documents.image_files import open_image
from magbatch.documents.images import ImageGrid, decode
from magbatch.documents.images import shown as view
from magbatch.errors import ErrorCode, RowError

GRID = ImageGrid(1540, 28)
Pixels = NDArray[np.uint8]


def shown(data: bytes) -> Pixels:
    image = decode(data, 10**7, GRID, "x")
    return np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)


def refused(data: bytes) -> RowError:
    with pytest.raises(RowError) as caught:
        decode(data, 10**7, GRID, "column 'scan'")
    assert not re.search("0x|\n|<_io", caught.value.message)
    return caught.value


def looks_drawn(got: Pixels, tolerance: int = 3, white: int = 255, dark: int = 40) -> None:
    assert got.shape == (28, 56, 3)
    assert np.abs(got[:12, :12].astype(int) - dark).max() <= tolerance
    assert np.abs(got[16:].astype(int) - white).max() <= tolerance
    assert np.abs(got[:, 16:].astype(int) - white).max() <= tolerance


# Samples.

GREY = grey()
SAMPLES: dict[str, tuple[NDArray[Any], int]] = {
    "floats of 0 to 1": (GREY.astype("f4"), 1),
    "doubles of 0 to 1": (GREY, 1),
    "inverted floats": ((1 - GREY).astype("f4"), 0),
    "floats of 0 to 255": ((255 * GREY).astype("f4"), 1),
    "floats of 16 bits": ((65535 * GREY).astype("f4"), 1),
    "16 bits": ((65535 * GREY).astype("u2"), 1),
    "inverted 16 bits": ((65535 * (1 - GREY)).astype("u2"), 0),
    "32 bits": ((4e9 * GREY).astype("u4"), 1),
    "signed 32 bits": ((2e9 * GREY).astype("i4"), 1),
    "signed 16 bits": ((32767 * GREY).astype("i2"), 1),
    "12 of signed 16 bits": ((4095 * GREY).astype("i2"), 1),
    "signed 8 bits": ((127 * GREY).astype("i1"), 1),
    "floats of colour": (np.asarray(drawn()).astype("f4") / 255, 2),
    "16 bits of colour": (np.asarray(drawn()).astype("u2") * 257, 2),
    "32 bits of colour": (np.asarray(drawn()).astype("u4") * 16_000_000, 2),
}


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "packed"])
@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_tiff_of_any_samples_looks_as_it_should(name: str, big: bool, packed: bool) -> None:
    values, photometric = SAMPLES[name]
    looks_drawn(shown(tiff_of(values, big=big, packed=packed, photometric=photometric)))


def test_values_without_a_range_of_their_own_are_stretched_to_it() -> None:
    for values in ((GREY * 4000 - 1000).astype("i2"), (GREY * 2 - 1).astype("f4"), (GREY * 1e6 - 5e5).astype("i4")):
        looks_drawn(shown(tiff_of(values)), dark=0)
    looks_drawn(shown(tiff_of((4e9 * (1 - GREY)).astype("u4"), photometric=0)), dark=0)


def test_what_stands_for_no_value_does_not_count() -> None:
    for nothing in (np.nan, -3.4e38, -np.inf, np.inf):
        values = (GREY * 1000).astype("f4")
        values[20:, 40:] = nothing
        got = shown(tiff_of(values))
        assert np.abs(got[:12, :12].astype(int) - 40).max() <= 1
        assert (got[16:, :36] == 255).all()
        assert (got[22:, 44:] == (255 if nothing == np.inf else 0)).all()
    assert (shown(tiff_of(np.full((28, 28), np.nan, "f4"))) == 0).all()


def test_other_kinds_of_colour_look_as_they_should() -> None:
    lab = ImageCms.profileToProfile(
        drawn(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    looks_drawn(shown(encoded(lab, "TIFF")), 4)
    looks_drawn(shown(encoded(drawn().convert("CMYK"), "TIFF", compression="tiff_lzw")))
    looks_drawn(shown(encoded(drawn().convert("YCbCr"), "JPEG", quality=95)), 6)
    looks_drawn(shown(encoded(drawn().convert("1", dither=Pillow.Dither.NONE), "TIFF", compression="group4")), dark=0)


def test_16_bits_with_an_alpha_channel_or_a_transparent_colour() -> None:
    light = np.asarray(drawn().convert("L")).astype(np.uint16) * 257
    alpha = np.full_like(light, 65535)
    alpha[:14, :14] = 0
    rows = np.stack([light, alpha], axis=-1).astype(">u2")
    header = struct.pack(">IIBBBBB", 56, 28, 16, 4, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    assert (shown(png) == 255).all()


def test_grey_files_of_pnm_keep_their_range() -> None:
    for top in (255, 4095, 65535):
        values = np.rint(GREY * top).astype(">u2" if top > 255 else "u1")
        looks_drawn(shown(b"P5 56 28 %d\n" % top + values.tobytes()))
    looks_drawn(shown(b"Pf\n56 28\n-1.0\n" + GREY[::-1].astype("<f4").tobytes()))


# Tags and chunks.


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
        looks_drawn(shown(with_chunks(encoded(drawn()), one))), name
    looks_drawn(shown(with_chunks(encoded(drawn()), *chunks.values())))


def exif(orientation: int, *entries: bytes, order: str = ">") -> bytes:
    """EXIF with a resolution that is text, as some scanners write it, and more entries."""
    wrong = [
        struct.pack(order + "HHI4s", 0x011A, 2, 400_000, b"72dp"),
        struct.pack(order + "HHII", 0x8769, 4, 1, 2**31),
    ]
    turn = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    body = b"".join([*wrong, turn, *entries])
    head = (b"MM" if order == ">" else b"II") + struct.pack(order + "HIH", 42, 8, 2 + 1 + len(entries))
    return b"Exif\0\0" + head + body


TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "floating TIFF"])
def test_a_picture_is_turned_by_its_orientation_whatever_the_other_tags_are(kind: str, orientation: int) -> None:
    tags = [(0x0112, SHORT, [orientation])]
    data = {
        "JPEG": lambda: encoded(drawn(), "JPEG", quality=95, exif=exif(orientation)),
        "PNG": lambda: encoded(drawn(), "PNG", exif=exif(orientation, order="<")),
        "WEBP": lambda: encoded(drawn(), "WEBP", lossless=True, exif=exif(orientation)),
        "TIFF": lambda: tiff_of(np.asarray(drawn()), photometric=2, tags=tags),
        "floating TIFF": lambda: tiff_of(GREY.astype("f4"), tags=tags),
    }[kind]()
    wanted = TURNED[orientation](np.asarray(drawn())).astype(int)
    got = shown(data)
    assert got.shape == wanted.shape
    assert np.median(np.abs(got - wanted)) == 0
    assert (np.abs(got - wanted) > 20).mean() < 0.02


def test_an_orientation_that_is_none_is_upright() -> None:
    for orientation in (0, 9, 65535):
        looks_drawn(shown(encoded(drawn(), "JPEG", quality=95, exif=exif(orientation))), 6)


def test_a_damaged_index_of_several_pictures_does_no_harm() -> None:
    data = encoded(drawn(), "JPEG", quality=95)
    index = b"MPF\0MM\0*\0\0\0\x08\0\1\xb0\0\0\7\0\0\0\4" + b"0100"
    for segment in (
        b"\xff\xe2" + struct.pack(">H", 2 + len(index)) + index,
        b"\xff\xed\0\x20Photoshop 3.0\0" + b"8BIM" * 4,
    ):
        looks_drawn(shown(data[:2] + segment + data[2:]), 6)


@pytest.mark.parametrize(
    ("across", "down", "size"),
    [(204, 98, (224, 448)), (98, 196, (448, 224)), (72, 72, (224, 224)), (0, 72, (224, 224)), (1, 300, (224, 224))],
)
def test_pixels_that_are_not_square_are_stretched(across: int, down: int, size: tuple[int, int]) -> None:
    """(width, height); a resolution that no scanner has is a mistake in the file."""
    values = np.full((224, 224), 200, np.uint8)
    picture = Pillow.fromarray(values)
    tags = [(282, RATIONAL, [(across, 1)]), (283, RATIONAL, [(down, 1)]), (296, SHORT, [2])]
    files = [tiff_of(values, tags=tags), tiff_of(values.astype("f4"), tags=tags)]
    files += [encoded(picture, "JPEG", dpi=(across, down)), encoded(picture, "PNG", dpi=(across, down))]
    for data in files:
        got = shown(data)
        assert abs(got.shape[1] - size[0]) <= 28
        assert abs(got.shape[0] - size[1]) <= 28
    turned = shown(tiff_of(values, tags=[*tags, (0x0112, SHORT, [6])]))
    assert abs(turned.shape[1] - size[1]) <= 28


def test_a_fax_is_as_tall_as_its_paper() -> None:
    page = Pillow.new("1", (1728, 1078), 1)
    got = shown(encoded(page, "TIFF", compression="group4", dpi=(204, 98)))
    assert got.shape[:2] == (1540, 1204)


# Sizes.


def test_a_large_picture_has_the_pixels_of_one_interpolation() -> None:
    """It is made of strips; 2,300 x 1,700 pixels are four."""
    noise = np.random.default_rng(3).integers(0, 256, (1700, 2300, 3), np.uint8)
    for data, pixels in (
        (encoded(Pillow.fromarray(noise), compress_level=1), noise),
        (encoded(Pillow.fromarray(noise[..., 0]), compress_level=1), np.stack([noise[..., 0]] * 3, axis=-1)),
        (tiff_of(noise[..., 0].astype("f4")), np.stack([noise[..., 0]] * 3, axis=-1)),
    ):
        wanted = cv2.resize(pixels.astype(np.float32), (1540, 1148), interpolation=cv2.INTER_CUBIC)
        apart = np.abs(shown(data) - np.clip(np.rint(wanted), 0, 255))
        assert apart.max() <= 1
        assert apart.mean() < 1e-4


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


def test_icons_are_decoded() -> None:
    looks_drawn(shown(ico(encoded(drawn()))))
    assert shown(icns(encoded(drawn(512, 512)))).shape == (532, 532, 3)


# Words.


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
        (b"Access denied for user", "text, which begins with 'Access denied for user'"),
        ("größer".encode() * 60, "text, which begins with"),
        (b"\x93\x01\x02\xfe\xff\x00\x9a\x10\x11\x12", "bytes 93 01 02 fe"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(data: bytes, words: str) -> None:
    error = refused(data)
    assert error.code is ErrorCode.IMAGE_UNREADABLE
    assert error.message.startswith("column 'scan': not an image that can be decoded: it ")
    assert words in error.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP"])
def test_a_file_that_is_cut_off_says_so(kind: str) -> None:
    data = encoded(Pillow.effect_noise((200, 200), 90), kind)
    assert refused(data[: len(data) // 2]).code is ErrorCode.IMAGE_UNREADABLE


def test_each_frame_of_a_floating_tiff_is_its_own() -> None:
    frames = [Pillow.fromarray((share * GREY).astype("f4")) for share in (1.0, 0.5)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:], compression="tiff_lzw")
    with open_image(data, 10**7, "x") as opened:
        for frame, white in enumerate((255, 128)):
            opened.seek(frame)
            image = view(opened, 10**7, GRID, "x")
            got = np.frombuffer(image.rgb, np.uint8).reshape(28, 56, 3)
            looks_drawn(got, white=white, dark=20 if frame else 40)


@pytest.mark.parametrize(
    "one",
    [
        chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n  38\n" + exif(6).hex().encode() + b"\n")
        ),
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="6"/>'),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<tiff:Orientation>6</tiff:Orientation>")),
    ],
    ids=["ImageMagick's", "XMP", "packed XMP"],
)
def test_a_pngs_texts_may_tell_how_it_is_turned(one: bytes) -> None:
    assert shown(with_chunks(encoded(drawn()), one)).shape == (56, 28, 3)
    png = encoded(drawn())
    assert shown(png[:-12] + chunk(b"eXIf", exif(6)[6:]) + png[-12:]).shape == (56, 28, 3)
