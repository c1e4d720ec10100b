"""Files become pages, at the size in which the model sees them, or say why not."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs
from numpy.typing import NDArray
from PIL import Image as Pillow
from support.document_files import (
    BLUE,
    RED,
    encoded,
    encrypted_pdf,
    noise,
    pages_pdf,
    pdf_of,
    scan_pdf,
    stream,
    text_pdf,
    tiff,
    two_halves,
    words,
)

from magbatch.documents.images import ImageGrid
from magbatch.errors import ErrorCode, RowError
from magbatch.rows import Image, Page

Read = Callable[..., tuple[int, list[Page]]]


def pixels(image: Image | None) -> NDArray[np.uint8]:
    assert image is not None
    return np.frombuffer(image.rgb, np.uint8).reshape(image.height, image.width, 3)


def refusal(act: Callable[[], object]) -> RowError:
    with pytest.raises(RowError) as caught:
        act()
    return caught.value


# PDF.


def test_a_born_digital_pdf_has_pictures_and_text(read: Read) -> None:
    total, pages = read(text_pdf("Total: 12.30", "Second page"))
    assert total == 2
    assert [(page.number, page.text) for page in pages] == [(1, "Total: 12.30"), (2, "Second page")]
    for page in pages:
        shown = pixels(page.image)
        assert shown.shape == (1540, 1092, 3)  # A4 at the longest side that the model sees, in whole cells
        dark = shown.max(axis=2) < 128
        assert 0.001 < dark.mean() < 0.05, "ink on paper"
        assert dark[100:200].any(), "where the text stands"
        assert not dark[300:].any(), "and nowhere else"


def test_what_is_not_wanted_is_not_made(read: Read) -> None:
    data = text_pdf("Total: 12.30")
    (page,) = read(data, text=False)[1]
    assert page.text is None
    assert page.image is not None
    (page,) = read(data, grid=None)[1]
    assert page.text == "Total: 12.30"
    assert page.image is None


@pytest.mark.parametrize("points", [1.0, 0.24, 2.4], ids=["72 dpi", "300 dpi", "30 dpi"])
def test_a_scan_is_shown_pixel_for_pixel_and_never_larger(read: Read, points: float) -> None:
    """Whatever size the paper has: upscaling gives tokens to read, and nothing to see."""
    scan = noise(280, 196)
    (page,) = read(scan_pdf(scan, points_per_pixel=points, text="ocr"))[1]
    assert page.text == "ocr"
    assert pixels(page.image).shape == (196, 280, 3)
    assert (pixels(page.image) == np.asarray(scan)).all()


def test_a_large_scan_is_scaled_down_to_the_longest_side(read: Read) -> None:
    (page,) = read(scan_pdf(two_halves(3000, 2000)))[1]
    shown = pixels(page.image)
    assert shown.shape == (1036, 1540, 3)
    assert (shown[500, 100] == RED).all()
    assert (shown[500, -100] == BLUE).all()


def drawn(content: bytes, *images: tuple[int, int], page: bytes = b"/MediaBox [0 0 612 792]") -> bytes:
    """A page over which images of these sizes can be drawn, /I0 and so on."""
    names = b" ".join(b"/I%d %d 0 R" % (index, 6 + index) for index in range(len(images)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
        b"<< /Type /Page /Parent 2 0 R %s /Contents 4 0 R /Resources << /Font << /F 5 0 R >> /XObject << %s >> >> >>"
        % (page, names),
        stream(content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for width, height in images:
        entries = b"/Type /XObject /Subtype /Image /Width %d /Height %d /BitsPerComponent 8 " % (width, height)
        entries += b"/ColorSpace /DeviceGray /Filter /FlateDecode"
        objects.append(stream(zlib.compress(bytes(width * height)), entries))
    return pdf_of(objects)


WHOLE = b"q 612 0 0 792 0 0 cm /I%d Do Q "
LARGEST, OF_SCAN = (1540, 1204, 3), (1204, 924, 3)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (drawn(WHOLE % 0, (918, 1188)), OF_SCAN),
        (drawn(WHOLE % 0, (918, 1188), page=b"/MediaBox [0 0 612 792] /Rotate 90"), (924, 1204, 3)),
        (drawn(b"1 0 0 1 300 300 cm " + WHOLE % 0, (918, 1188), page=b"/MediaBox [300 300 912 1092]"), OF_SCAN),
        (drawn(WHOLE % 0 + WHOLE % 1, (64, 64), (2550, 3300)), LARGEST),
        (drawn(WHOLE % 0 + words("Total"), (1, 1)), LARGEST),
        (drawn(WHOLE % 0 + words("Total"), (918, 1188)), LARGEST),
        (drawn(WHOLE % 0 + b"10 10 99 99 re f", (918, 1188)), LARGEST),
        (drawn(b"q 100 0 0 100 50 600 cm /I0 Do Q", (10, 10)), LARGEST),
    ],
    ids=["scan", "turned", "box elsewhere", "layers", "white page", "letterhead", "lines", "logo"],
)
def test_only_what_is_a_scan_and_nothing_more_has_a_scans_resolution(
    read: Read, data: bytes, shape: tuple[int, ...]
) -> None:
    """Text over a background is text: it is drawn as finely as the model sees it."""
    assert pixels(read(data)[1][0].image).shape == shape


@pytest.mark.parametrize(("rotate", "shape"), [(0, (1540, 1092, 3)), (90, (1092, 1540, 3)), (180, (1540, 1092, 3))])
def test_a_turned_page_is_upright(read: Read, rotate: int, shape: tuple[int, ...]) -> None:
    (page,) = read(text_pdf("Total", extra=b"/Rotate %d" % rotate))[1]
    assert pixels(page.image).shape == shape
    assert page.text == "Total"


@pytest.mark.parametrize(
    ("box", "size"),
    [((14400, 14400), (1540, 1540)), ((3, 3), (28, 28)), ((200, 400), (560, 1120)), ((14400, 3), (1540, 28))],
)
def test_pages_of_any_size_are_within_the_grid(read: Read, box: tuple[float, float], size: tuple[int, int]) -> None:
    """Small pages are drawn at 200 dpi at most; the pixels are bounded before anything is drawn."""
    image = read(text_pdf("x", box=box))[1][0].image
    assert image is not None
    assert (image.width, image.height) == size


def test_form_fields_and_annotations_are_drawn(read: Read) -> None:
    """Filled-in values matter most on an invoice."""
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (total) /V (12.30) /Rect [50 400 300 460] /P 3 0 R "
        b"/DA (/F 30 Tf 0 g) /MK << /BG [1 0 0] >> >>"
    )
    data = pdf_of(
        [b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [4 0 R] /NeedAppearances true /DA (/F 30 Tf 0 g) >> >>",
         b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
         b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Annots [4 0 R] >>", field]
    )  # fmt: skip
    shown = pixels(read(data)[1][0].image).astype(int)
    field_box = shown[int((842 - 455) * 1.829) : int((842 - 405) * 1.829), int(60 * 1.829) : int(290 * 1.829)]
    assert (field_box != 255).any(), "the field is blank"


def test_the_sizes_of_pages_are_those_that_mistrals_own_encoder_keeps(read: Read) -> None:
    """The engine gets these pixels; no later step resizes them."""
    rng = random.Random(3)
    encoder = ImageEncoder(ImageConfig(14, 1540, 2), SpecialImageIDs(img=10, img_break=12, img_end=13))
    for _ in range(10):
        image = read(text_pdf("x", box=(rng.uniform(10, 3000), rng.uniform(10, 3000))))[1][0].image
        assert image is not None
        assert (image.width % 28, image.height % 28) == (0, 0)
        assert max(image.width, image.height) <= 1540
        tokens = encoder(ImageChunk(image=Pillow.new("L", (image.width, image.height)))).tokens
        assert tokens.count(10) == image.width // 28 * (image.height // 28)


def test_odd_text_is_clean(read: Read) -> None:
    (page,) = read(pages_pdf([words("one", "two") + b" BT /F 9 Tf (\\000\\001x) Tj ET"]))[1]
    assert page.text is not None
    assert page.text.split()[:2] == ["one", "two"]
    assert "\0" not in page.text
    assert page.text.encode()


@pytest.mark.parametrize(
    ("data", "code", "part"),
    [
        (encrypted_pdf("secret"), ErrorCode.DOCUMENT_ENCRYPTED, "password"),
        (pages_pdf([]), ErrorCode.DOCUMENT_EMPTY, "no page"),
        (b"%PDF-1.7 and nothing more", ErrorCode.DOCUMENT_UNREADABLE, "not a PDF that can be read"),
        (text_pdf("x")[:200], ErrorCode.DOCUMENT_UNREADABLE, "not a PDF that can be read"),
        (
            pdf_of([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 3 /Kids [2 0 R 2 0 R] >>"]),
            ErrorCode.DOCUMENT_UNREADABLE,
            "page 1 is damaged",
        ),
        (text_pdf(*["x"] * 10_000), ErrorCode.TOO_MANY_PAGES, "10,000 pages, above limits.max_pages = 200"),
    ],
    ids=["encrypted", "zero pages", "a header", "cut", "a page tree that bites its tail", "10,000 pages"],
)
def test_a_pdf_that_is_not_to_be_had_says_why(read: Read, data: bytes, code: ErrorCode, part: str) -> None:
    error = refusal(lambda: read(data))
    assert error.code is code
    assert part in error.message


def test_an_error_is_not_that_of_the_file_before(read: Read) -> None:
    """PDFium keeps the last error; a file without pages sets none."""
    assert refusal(lambda: read(encrypted_pdf("secret"))).code is ErrorCode.DOCUMENT_ENCRYPTED
    assert refusal(lambda: read(pages_pdf([]))).code is ErrorCode.DOCUMENT_EMPTY


def test_a_pdf_that_only_its_owner_may_change_is_read(read: Read) -> None:
    assert read(encrypted_pdf(""))[1][0].text == "Total: 12.30"


def test_harmed_pdfs_are_their_rows_error_alone(read: Read) -> None:
    rng = random.Random(11)
    data = text_pdf("Total: 12.30", "more") + scan_pdf(noise(60, 60))
    codes = set()
    for _ in range(60):
        harmed = bytearray(data[: rng.randrange(20, len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.randrange(1, 12)):
            harmed[rng.randrange(len(harmed))] = rng.randrange(256)
        try:
            read(bytes(harmed))
        except RowError as error:
            codes.add(error.code)
    assert codes
    assert codes <= {ErrorCode.DOCUMENT_UNREADABLE, ErrorCode.DOCUMENT_EMPTY, ErrorCode.DOCUMENT_ENCRYPTED}


# Images.


def test_a_tiff_has_a_page_for_each_of_its_images(read: Read) -> None:
    images = [noise(56, 28, 1), noise(28, 84, 2), two_halves()]
    total, pages = read(tiff(*images))
    assert total == 3
    assert [page.number for page in pages] == [1, 2, 3]
    for page, image in zip(pages, images, strict=True):
        assert page.text is None
        assert (pixels(page.image) == np.asarray(image)).all()


def test_a_later_page_of_a_tiff_may_not_be_too_large_either(read: Read) -> None:
    """Pillow checks only the first page by itself."""
    bomb = bytearray(tiff(Pillow.new("L", (28, 28)), Pillow.new("L", (28, 28))))
    first = int.from_bytes(bomb[4:8], "little")
    entries = int.from_bytes(bomb[first : first + 2], "little")
    second = int.from_bytes(bomb[first + 2 + 12 * entries :][:4], "little")
    for at in range(second + 2, second + 2 + 12 * entries, 12):
        if int.from_bytes(bomb[at : at + 2], "little") in (256, 257):  # width and height
            bomb[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 40_000)
    error = refusal(lambda: read(bytes(bomb)))
    assert error.code is ErrorCode.DOCUMENT_TOO_LARGE
    assert error.message == "page 2: 40000 x 40000 pixels, above limits.max_image_pixels = 50000000"


def test_an_animation_is_one_page(read: Read) -> None:
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(two_halves(), kind, save_all=True, append_images=[noise(56, 28)], lossless=True)
        total, pages = read(data)
        assert (total, len(pages)) == (1, 1), kind
        assert (pixels(pages[0].image)[5, 5] == RED).all()


def turned() -> bytes:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    return encoded(two_halves(), "PNG", exif=exif)


def grey_16_bits() -> bytes:
    values = np.zeros((28, 28), np.uint16)
    values[:, 14:] = 257 * 128
    return encoded(Pillow.fromarray(values))


@pytest.mark.parametrize(
    ("data", "shape", "colours"),
    [
        (turned(), (56, 28, 3), {(5, 5): RED, (50, 5): BLUE}),
        (encoded(two_halves().convert("CMYK"), "TIFF"), (28, 56, 3), {(5, 5): RED, (5, 50): BLUE}),
        (grey_16_bits(), (28, 28, 3), {(5, 5): (0, 0, 0), (5, 20): (128, 128, 128)}),
        (encoded(Pillow.new("RGB", (1, 1), BLUE)), (28, 28, 3), {(5, 5): BLUE}),
    ],
    ids=["turned by EXIF", "CMYK", "16 bits", "1 x 1"],
)
def test_unusual_images_are_shown_as_they_are_meant(
    read: Read, data: bytes, shape: tuple[int, ...], colours: dict[tuple[int, int], tuple[int, int, int]]
) -> None:
    shown = pixels(read(data)[1][0].image)
    assert shown.shape == shape
    for place, colour in colours.items():
        assert np.abs(shown[place].astype(int) - colour).max() <= 2


def test_images_have_the_size_of_the_models_grid(read: Read) -> None:
    image = read(encoded(noise(900, 300)), grid=ImageGrid(448, 28))[1][0].image
    assert image is not None
    assert (image.width, image.height) == (448, 168)


def test_an_image_in_a_job_for_text_is_empty(read: Read) -> None:
    error = refusal(lambda: read(encoded(two_halves()), grid=None))
    assert error.code is ErrorCode.DOCUMENT_EMPTY
    assert "input.document.mode" in error.message


def test_a_model_without_vision_takes_no_pictures(read: Read) -> None:
    for data in (encoded(two_halves()), text_pdf("x"), tiff(two_halves())):
        assert refusal(lambda data=data: read(data, grid=None, no_images="blind")).code is ErrorCode.IMAGES_UNSUPPORTED
    assert read(b"text", grid=None, no_images="blind")[0] == 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_a_cut_image_is_unreadable(read: Read, kind: str) -> None:
    data = encoded(noise(200, 200), kind)
    assert refusal(lambda: read(data[: len(data) // 2])).code is ErrorCode.DOCUMENT_UNREADABLE


# Text.


@pytest.mark.parametrize(
    ("data", "pages"),
    [
        ("Grüße, 数字 ✓".encode(), ["Grüße, 数字 ✓"]),
        (b"\xef\xbb\xbfwith a mark", ["with a mark"]),
        ("Grüße".encode("utf-16"), ["Grüße"]),
        (b"one\ftwo\n\f\f", ["one", "two"]),
        (b"\fsecond", ["", "second"]),
        (b"[IMG][THINK]</s>", ["[IMG][THINK]</s>"]),
        (b"BMW Group annual report", ["BMW Group annual report"]),
        (b"P1 incident: all is down", ["P1 incident: all is down"]),
        (b"BUFR notes, DDS is a service", ["BUFR notes, DDS is a service"]),
        ("Grüße".encode("utf-32"), ["Grüße"]),
        (b"P1 2 3 of the plan are done", ["P1 2 3 of the plan are done"]),
        (b"P1 10 20 30", ["P1 10 20 30"]),
        (b"P1 2 2 1 0 1 1 and more", ["P1 2 2 1 0 1 1 and more"]),
        (b"P2 1 1 255 17 litres", ["P2 1 1 255 17 litres"]),
        (b"P5 2 2 255 lorem ipsum dolor", ["P5 2 2 255 lorem ipsum dolor"]),
        (b"P6 1 1 255\nabcd", ["P6 1 1 255\nabcd"]),
        (b"PF 2 2 -1.0\n" + b"x" * 16, ["PF 2 2 -1.0\n" + "x" * 16]),
        (b"GIF89a is a format of 1989 " * 20, ["GIF89a is a format of 1989 " * 20]),
        (b"8BPS, qoif and icns are words too " * 20, ["8BPS, qoif and icns are words too " * 20]),
        (b"RIFFxxxxWEBPVP8 begins an image", ["RIFFxxxxWEBPVP8 begins an image"]),
        (b"%PDF- is how a PDF begins", ["%PDF- is how a PDF begins"]),
        (b"A PDF begins with %PDF-1.7", ["A PDF begins with %PDF-1.7"]),
        ("BM, größer".encode("utf-16"), ["BM, größer"]),
    ],
    ids=lambda value: repr(value)[:24] if isinstance(value, bytes) else None,
)
def test_text_is_pages_that_end_at_form_feeds(read: Read, data: bytes, pages: list[str]) -> None:
    total, found = read(data)
    assert total == len(pages)
    assert [page.text for page in found] == pages
    assert all(page.image is None for page in found)


@pytest.mark.parametrize(
    "data",
    [
        b"P1\n# a comment\n3 2\n1 0 1\n0 1 0\n",
        b"P1 3 2 101010",
        b"P2 3 2 9 1 2 3 4 5 6\n",
        b"P3 1 2 255 255 0 0 0 0 255",
        b"P4 16 2\nABCD",
        b"P5 3 2 255\nABCDEF",
        b"P6 1 2 255\nABCDEF\n",
        b"P6 1 1 65535\nABCDEF",
    ],
)
def test_an_image_of_printable_characters_is_an_image(read: Read, data: bytes) -> None:
    (page,) = read(data)[1]
    assert page.image is not None
    assert page.text is None


def test_a_pdf_of_printable_characters_may_stand_behind_a_text(read: Read) -> None:
    assert read(b"Sent by mail:\n" + text_pdf("x"))[1][0].text == "x"
    assert refusal(lambda: read(b"Sent by mail:\n" + pages_pdf([]))).code is ErrorCode.DOCUMENT_EMPTY


def test_text_in_another_encoding_says_what_to_do(read: Read) -> None:
    error = refusal(lambda: read("Größe: 12 m²".encode("latin-1")))
    assert error.code is ErrorCode.DOCUMENT_UNREADABLE
    assert "UTF-8 or UTF-16 (convert other encodings)" in error.message
    assert "byte order mark" in refusal(lambda: read("Total".encode("utf-16-le"))).message


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", ErrorCode.DOCUMENT_EMPTY),
        (b" \n\t", ErrorCode.DOCUMENT_EMPTY),
        (b"\f\f", ErrorCode.DOCUMENT_EMPTY),
        (bytes(range(256)), ErrorCode.DOCUMENT_UNREADABLE),
        (b"PK\x03\x04\x14\x00\x00\x00", ErrorCode.DOCUMENT_UNREADABLE),
        (b"text\0with nulls", ErrorCode.DOCUMENT_UNREADABLE),
    ],
)
def test_what_is_no_document_says_so(read: Read, data: bytes, code: ErrorCode) -> None:
    assert refusal(lambda: read(data)).code is code


# How many.


@pytest.mark.parametrize("make", [lambda: text_pdf(*"abcde"), lambda: tiff(*[two_halves()] * 5)], ids=["pdf", "tiff"])
def test_pages_with_pictures_are_cut_or_refused_at_their_limit(read: Read, make: Callable[[], bytes]) -> None:
    names: dict[str, Any] = {"most_images": 3, "limit_names": ("limits.max_pages = 200", "limits.max_images = 3")}
    total, pages = read(make(), cut=True, **names)
    assert (total, len(pages)) == (5, 3)
    error = refusal(lambda: read(make(), **names))
    assert error.code is ErrorCode.TOO_MANY_PAGES
    assert "it has 5 pages, above limits.max_images = 3" in error.message
    assert read(make(), **(names | {"most_images": 5}))[0] == 5


def test_pages_of_text_have_the_other_limit(read: Read) -> None:
    data = "\f".join("abcde").encode()
    assert len(read(data, most_images=1)[1]) == 5
    assert len(read(data, most=2, cut=True)[1]) == 2
    assert refusal(lambda: read(data, most=2)).code is ErrorCode.TOO_MANY_PAGES
    assert len(read(text_pdf(*"abcde"), grid=None, most_images=1)[1]) == 5


def test_what_a_document_is_is_told_by_its_bytes(read: Read) -> None:
    """A header may stand a little way into a file; a PDF may be inside an image's name and nothing more."""
    assert read(b"\n\n" + text_pdf("x"))[1][0].text == "x"
    sink = io.BytesIO()
    two_halves().save(sink, "PNG")
    assert read(sink.getvalue() + b"%PDF-1.7")[1][0].image is not None
