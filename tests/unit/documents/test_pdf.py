"""A PDF's pages are those of its tree, as fine as what is on them, or are refused for what they are."""

import io
import zlib
from collections.abc import Callable

import pytest
from PIL import Image as Pillow
from support.document_files import (
    BLACK,
    image_object,
    noise,
    one_page,
    packed,
    pages_pdf,
    pdf_of,
    scan_pdf,
    stream,
    text_pdf,
    words,
)

from magbatch.errors import ErrorCode, RowError
from magbatch.rows import Page

Read = Callable[..., tuple[int, list[Page]]]
PACKS = [lambda data: data, packed]
LARGEST, FINE, LEAST = (1204, 1540), (1036, 1344), (868, 1120)
WHOLE = b"q 612 0 0 792 0 0 cm /I%d Do Q "


def size_of(read: Read, data: bytes) -> tuple[int, int]:
    image = read(data)[1][0].image
    assert image is not None
    return image.width, image.height


# How fine a picture is.


def fax(width: int, height: int) -> bytes:
    """A black and white image, as fax machines and scanners of layers code it."""
    sink = io.BytesIO()
    Pillow.new("1", (width, height)).save(sink, "TIFF", compression="group4", strip_size=1 << 30)
    tags = Pillow.open(sink).tag_v2  # type: ignore[attr-defined]
    coded = sink.getvalue()[tags[273][0] : tags[273][0] + tags[279][0]]
    return stream(
        coded,
        b"/Type /XObject /Subtype /Image /Width %d /Height %d /BitsPerComponent 1 /Filter /CCITTFaxDecode /DecodeParms "
        b"<< /K -1 /Columns %d /Rows %d >>" % (width, height, width, height),
    )


def stencil(data: bytes) -> bytes:
    return data.replace(b"/Type /XObject", b"/Type /XObject /ImageMask true", 1)


def grey(data: bytes) -> bytes:
    return data.replace(b"/Type /XObject", b"/Type /XObject /ColorSpace /DeviceGray", 1)


def layers(*objects: bytes, drawn: int = 1) -> bytes:
    names = b" ".join(b"/I%d %d 0 R" % (at, 6 + at) for at in range(drawn))
    return one_page(b"".join(WHOLE % at for at in range(drawn)), *objects, resources=b"/XObject << %s >>" % names)


COARSE = (85, 110)


@pytest.mark.parametrize("pack", PACKS, ids=["plain", "packed"])
@pytest.mark.parametrize(
    ("data", "size"),
    [
        (layers(image_object(*COARSE, b"/SMask 7 0 R"), image_object(1700, 2200)), LARGEST),
        (layers(image_object(1, 1, b"/SMask 7 0 R"), grey(fax(1700, 2200))), LARGEST),
        (layers(image_object(*COARSE, b"/Mask 7 0 R"), stencil(fax(1700, 2200))), LARGEST),
        (layers(image_object(*COARSE), stencil(fax(1700, 2200)), drawn=2), LARGEST),
        (layers(image_object(*COARSE), image_object(1, 1, b"/SMask 8 0 R"), grey(fax(1020, 1320)), drawn=2), FINE),
        (layers(image_object(*COARSE, b"/Mask [0 3]")), LEAST),
        (layers(image_object(1, 1, value=250)), LEAST),
        (layers(image_object(1020, 1320)), FINE),
    ],
    ids=["soft mask", "fax mask", "stencil", "stencil drawn", "two layers", "mask of colours", "flat", "scan"],
)
def test_a_page_of_layers_is_as_fine_as_the_finest(
    read: Read, data: bytes, size: tuple[int, int], pack: Callable[[bytes], bytes]
) -> None:
    assert size_of(read, pack(data)) == size


def test_a_mask_may_be_inherited_with_the_resources(read: Read) -> None:
    data = pdf_of(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Count 1 /Kids [3 0 R] /Resources << /XObject << /I0 5 0 R >> >> >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R >>",
            stream(WHOLE % 0),
            image_object(*COARSE, b"/SMask 6 0 R"),
            image_object(1700, 2200),
        ]
    )
    assert size_of(read, data) == LARGEST


def test_a_small_page_may_be_as_small_as_its_picture(read: Read) -> None:
    """A receipt has a pixel for each point, or fewer."""
    assert size_of(read, scan_pdf(noise(280, 196), points_per_pixel=2)) == (280, 196)


ANNOTATION = b"<< /Type /Annot /Rect [72 600 300 640] /P 3 0 R %s >>"


@pytest.mark.parametrize("pack", PACKS, ids=["plain", "packed"])
@pytest.mark.parametrize("unit", [0.5, 1, 10, 10.0])
def test_a_page_has_the_size_that_its_units_give_it(read: Read, unit: float, pack: Callable[[bytes], bytes]) -> None:
    box = (612 / unit, 792 / unit)
    assert size_of(read, pack(one_page(words("a"), page=b"/UserUnit %f" % unit, box=box))) == LARGEST
    drawn = b"q %f 0 0 %f 0 0 cm /I Do Q" % box
    scan = one_page(
        drawn,
        image_object(600, 776, value=128),
        page=b"/UserUnit %f" % unit,
        box=box,
        resources=b"/XObject << /I 6 0 R >>",
    )
    assert size_of(read, pack(scan)) == LEAST


@pytest.mark.parametrize("unit", [b"0", b"-10", b"/Ten", b"null", b"(10)", b"99 0 R", b"9" * 400])
def test_a_unit_that_is_none_changes_nothing(read: Read, unit: bytes) -> None:
    assert size_of(read, one_page(words("a"), page=b"/UserUnit " + unit)) == LARGEST


@pytest.mark.parametrize(
    ("annotation", "size"),
    [
        (b"/Subtype /FreeText /DA (/F 12 Tf) /Contents (PAID)", LARGEST),
        (b"/Subtype /Widget /FT /Tx /T (total) /V (12.30)", LARGEST),
        (b"/Subtype /Stamp /Name /Approved", LARGEST),
        (b"/Subtype /Square /C [1 0 0]", LARGEST),
        (b"/Subtype /FreeText /F 2 /DA (/F 12 Tf) /Contents (PAID)", LEAST),
        (b"/Subtype /Link", LEAST),
    ],
    ids=["text box", "field", "stamp", "square", "hidden", "link"],
)
def test_what_is_written_over_a_flat_background_is_drawn_finely(
    read: Read, annotation: bytes, size: tuple[int, int]
) -> None:
    data = one_page(
        WHOLE % 0,
        image_object(4, 4, value=250),
        ANNOTATION % annotation,
        resources=b"/XObject << /I0 6 0 R >>",
        page=b"/Annots [7 0 R]",
        catalog=b"/AcroForm << /Fields [7 0 R] /DA (/F 12 Tf 0 g) >>",
    )
    assert size_of(read, data) == size


# Which pages there are.


def tree(count: int, inner: int = 2) -> bytes:
    """Four pages below two nodes, whose counts may be wrong; half of them turned, all with inherited resources."""
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [3 0 R 4 0 R] /MediaBox [0 0 300 500] /Resources 14 0 R >>" % count,
        b"<< /Type /Pages /Count %d /Kids [5 0 R 6 0 R] /Parent 2 0 R /Rotate 90 >>" % inner,
        b"<< /Type /Pages /Count 2 /Kids [7 0 R 8 0 R] /Parent 2 0 R >>",
    ]
    objects += [b"<< /Type /Page /Parent %d 0 R /Contents %d 0 R >>" % (3 + at // 2, 10 + at) for at in range(4)]
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    objects += [stream(b"BT /F 20 Tf 50 100 Td (page %d) Tj ET" % (at + 1)) for at in range(4)]
    objects.append(b"<< /Font << /F 9 0 R >> >>")
    return pdf_of(objects)


@pytest.mark.parametrize("pack", PACKS, ids=["plain", "packed"])
@pytest.mark.parametrize(("count", "inner"), [(4, 2), (1, 2), (3, 1), (2, 2), (9, 2), (4, 9), (0, 0), (-1, 2)])
def test_pages_are_those_of_the_tree_whatever_it_says_of_their_number(
    read: Read, count: int, inner: int, pack: Callable[[bytes], bytes]
) -> None:
    total, pages = read(pack(tree(count, inner)))
    assert total == 4
    assert [page.text for page in pages] == ["page 1", "page 2", "page 3", "page 4"]
    turned = [page.image is not None and page.image.width > page.image.height for page in pages]
    assert turned == [True, True, False, False]


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-256"])
def test_pages_of_a_file_that_only_its_owner_may_change_are_those_of_the_tree(read: Read, algorithm: str) -> None:
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(tree(4)))
    writer.encrypt("", "owner", algorithm=algorithm)
    writer._pages.get_object()[pypdf.generic.NameObject("/Count")] = pypdf.generic.NumberObject(1)
    sink = io.BytesIO()
    writer.write(sink)
    assert [page.text for page in read(sink.getvalue())[1]] == ["page 1", "page 2", "page 3", "page 4"]


def test_a_page_that_was_changed_later_is_one_page(read: Read) -> None:
    """An update stands behind the file; the page's old version is still in it."""
    data = text_pdf("first", "second")
    start = len(data)
    update = b"4 0 obj\n<< /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] /Contents 7 0 R >>\nendobj\n"
    table = b"xref\n4 1\n%010d 00000 n \ntrailer\n<< /Size 8 /Root 1 0 R /Prev %d >>\nstartxref\n%d\n%%%%EOF\n"
    before = data.rindex(b"xref\n0")
    total, pages = read(data + update + table % (start, before, start + len(update)))
    assert total == 2
    assert [page.image is not None and page.image.width for page in pages] == [280, 1092]


# Files that are not documents.


def xfa(
    packets: bytes, *pages: bytes, rendering: bool = False, page: bytes = b"", objects: tuple[bytes, ...] = ()
) -> bytes:
    catalog = b"/AcroForm << /Fields [] /XFA 6 0 R >>" + (b" /NeedsRendering true" if rendering else b"")
    return one_page(b"".join(pages), stream(packets), *objects, page=page, catalog=catalog)


WAIT = words("Please wait...", "If this message is not eventually replaced", size=12)
GERMAN = words("Bitte warten", "Weitere Informationen: www.adobe.com/go/reader_download", size=12)
FIELD = b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (12.30) /Rect [72 600 300 640] /P 3 0 R >>"
REQUIRED = (
    b"<xdp><config><acrobat><acrobat7><dynamicRender>required</dynamicRender></acrobat7></acrobat></config></xdp>"
)


@pytest.mark.parametrize("pack", PACKS, ids=["plain", "packed"])
@pytest.mark.parametrize(
    "data",
    [
        xfa(b"<xdp/>", WAIT, rendering=True),
        xfa(b"<xdp/>", WAIT),
        xfa(b"<xdp/>", GERMAN),
        xfa(REQUIRED, words("Un momento")),
        xfa(b"<xdp/>", words("Un momento"), rendering=True),
    ],
    ids=["rendering", "english", "german", "required", "other words"],
)
def test_a_dynamic_form_is_not_its_placeholder(read: Read, data: bytes, pack: Callable[[bytes], bytes]) -> None:
    for grid in ({}, {"grid": None}):
        with pytest.raises(RowError, match="dynamic XFA form") as caught:
            read(pack(data), **grid)
        assert caught.value.code is ErrorCode.DOCUMENT_UNREADABLE


@pytest.mark.parametrize(
    "data",
    [
        xfa(b"<xdp/>", words("Form")),
        xfa(b"<xdp/>", words("Form"), page=b"/Annots [7 0 R]", objects=(FIELD,)),
        xfa(REQUIRED, words("Form"), rendering=True, page=b"/Annots [7 0 R]", objects=(FIELD,)),
        one_page(words("Form", "Please wait for our letter")),
    ],
    ids=["no field", "static", "pages next to the template", "no XFA"],
)
def test_a_form_with_pages_of_its_own_is_read(read: Read, data: bytes) -> None:
    text = read(data)[1][0].text
    assert text is not None
    assert text.startswith("Form")


def portfolio(
    *names: str, collection: bytes = b"/Collection << /Type /Collection /View /D >>", cover: str = "Cover"
) -> bytes:
    files = b"".join(
        b"(%s) << /Type /Filespec /F (%s) /EF << /F 6 0 R >> >> " % (name.encode(), name.encode()) for name in names
    )
    embedded = stream(zlib.compress(text_pdf("inside")), b"/Type /EmbeddedFile /Filter /FlateDecode")
    return one_page(
        words(cover), embedded, catalog=b"/Names << /EmbeddedFiles << /Names [%s] >> >> %s" % (files, collection)
    )


@pytest.mark.parametrize("pack", PACKS, ids=["plain", "packed"])
@pytest.mark.parametrize(
    "cover", ["For the best experience, open this PDF portfolio in Acrobat", "Our offer in 5 files"]
)
def test_a_portfolio_is_not_its_cover(read: Read, cover: str, pack: Callable[[bytes], bytes]) -> None:
    names = [f"invoice{at}.pdf" for at in range(5)]
    with pytest.raises(RowError, match=r"portfolio.* 5 attached files \('invoice0.pdf', .*, …\)") as caught:
        read(pack(portfolio(*names, cover=cover)))
    assert caught.value.code is ErrorCode.DOCUMENT_UNREADABLE


@pytest.mark.parametrize(
    "data",
    [
        portfolio("factur-x.xml", collection=b""),
        portfolio("a.pdf", collection=b"/Collection << /Type /Collection /View /H >>"),
        portfolio(),
    ],
    ids=["attachment", "hidden collection", "empty collection"],
)
def test_a_document_with_attachments_is_its_pages(read: Read, data: bytes) -> None:
    assert read(data)[1][0].text == "Cover"


# Pages that show nothing.


@pytest.mark.parametrize(
    ("data", "blank"),
    [
        (pages_pdf([b""]), True),
        (pages_pdf([b"1 1 1 rg 0 0 100 100 re f"]), True),
        (scan_pdf(Pillow.new("RGB", (56, 28), BLACK)), True),
        (scan_pdf(Pillow.new("RGB", (56, 28)), text="ocr"), False),
        (pages_pdf([words("x", size=4)]), False),
        (pages_pdf([b"300 300 1 1 re f"]), False),
    ],
    ids=["nothing", "white on white", "black", "words without ink", "ink", "a dot"],
)
def test_a_page_that_shows_nothing_and_has_no_text_is_blank(read: Read, data: bytes, blank: bool) -> None:
    assert read(data)[1][0].blank is blank
    assert not read(data, grid=None)[1][0].blank, "no one looked"


def test_a_page_whose_text_is_neither_drawn_nor_wanted_is_blank(read: Read) -> None:
    """The text's font may be missing on this machine."""
    data = scan_pdf(Pillow.new("RGB", (56, 28)), text="drawn by nobody")
    assert read(data, text=False)[1][0].blank
    assert not read(data)[1][0].blank
