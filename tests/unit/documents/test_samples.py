"""Samples of any type become 8 bits as they are meant, and strips are parts of the whole."""

import struct
import zlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageCms
from support.picture_files import chunk, drawn, encoded, grey, tiff_of

from magbatch.documents.image_files import open_image
from magbatch.documents.samples import raster, strips

Pixels = NDArray[np.uint8]
GREY = grey()


def shown(data: bytes) -> Pixels:
    """Samples of a file: RGB, uint8 (height, width, 3)."""
    with open_image(data, 10**7, "x") as opened:
        found = raster(opened)
        pixels = np.concatenate([found.strip(*rows) for rows in strips(found.width, found.height)])
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels


def looks_drawn(got: Pixels, tolerance: int = 3, white: int = 255, dark: int = 40) -> None:
    assert got.shape == (28, 56, 3)
    assert np.abs(got[:12, :12].astype(int) - dark).max() <= tolerance
    assert np.abs(got[16:].astype(int) - white).max() <= tolerance
    assert np.abs(got[:, 16:].astype(int) - white).max() <= tolerance


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


def test_strips_are_parts_of_the_whole() -> None:
    rows = list(strips(3000, 1000))
    assert rows[0][0] == 0
    assert rows[-1][1] == 1000
    assert all(before[1] == after[0] for before, after in pairwise(rows))
    assert all((end - begin) * 3000 <= 1 << 20 for begin, end in rows)
    with open_image(encoded(drawn()), 10**7, "x") as opened:
        found = raster(opened)
    assert (np.concatenate([found.strip(0, 5), found.strip(5, 28)]) == found.strip(0, 28)).all()
