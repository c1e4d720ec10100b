"""Images are upright, square-pixelled and at the model's size, whatever their tags say.

Common formats are tested in test_render.py, samples in test_samples.py.
"""

import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from support.picture_files import (
    RATIONAL,
    SHORT,
    chunk,
    drawn,
    encoded,
    grey,
    icns,
    ico,
    tiff_of,
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


GREY = grey()


# Tags and chunks.


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
    """A large picture is resized in strips; 1,700 x 1,300 pixels are three."""
    noise = np.random.default_rng(3).integers(0, 256, (1300, 1700, 3), np.uint8)
    for data, pixels in (
        (encoded(Pillow.fromarray(noise), compress_level=1), noise),
        (encoded(Pillow.fromarray(noise[..., 0]), compress_level=1), np.stack([noise[..., 0]] * 3, axis=-1)),
        (tiff_of(noise[..., 0].astype("f4")), np.stack([noise[..., 0]] * 3, axis=-1)),
    ):
        wanted = cv2.resize(pixels.astype(np.float32), GRID.fit(1700, 1300), interpolation=cv2.INTER_CUBIC)
        apart = np.abs(shown(data) - np.clip(np.rint(wanted), 0, 255))
        assert apart.max() <= 1
        assert apart.mean() < 1e-4


def test_icons_are_decoded() -> None:
    looks_drawn(shown(ico(encoded(drawn()))))
    assert shown(icns(encoded(drawn(512, 512)))).shape == (532, 532, 3)


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


def test_bytes_that_are_not_an_image_are_a_row_error_that_names_them() -> None:
    error = refused(b"%PDF-1.7\n")
    assert error.code is ErrorCode.IMAGE_UNREADABLE
    assert error.message.startswith("column 'scan': not an image that can be decoded: it is PDF; ")
