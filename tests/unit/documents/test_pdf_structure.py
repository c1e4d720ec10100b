"""pypdf tells the facts about a PDF that PDFium does not, and only for files that need it."""

import pypdfium2 as pdfium
import pytest
from support.document_files import encrypted_pdf, image_object, one_page, packed, pages_pdf, text_pdf, words

from magbatch.documents.pdf_structure import Structure, is_plain


def counted_as(data: bytes, count: int) -> bytes:
    """A PDF whose page tree has a wrong count, in as many bytes."""
    return data.replace(b"/Count 3", b"/Count %d" % count)


@pytest.mark.parametrize("pack", [lambda data: data, packed], ids=["plain", "packed"])
def test_most_files_need_only_pdfium(pack: object) -> None:
    data = pack(text_pdf("a", "b"))  # type: ignore[operator]
    assert is_plain(data, 2)
    assert not is_plain(data, 1), "PDFium missed a page"


@pytest.mark.parametrize(
    "data",
    [
        one_page(words("a"), page=b"/UserUnit 2"),
        one_page(words("a"), catalog=b"/OCProperties << /OCGs [] >>"),
        one_page(words("a"), catalog=b"/Collection << >>"),
        one_page(words("a"), page=b"/Note (/ObjStm) "),
    ],
    ids=["unit", "layers", "portfolio", "object stream that is not one"],
)
def test_files_with_more_than_pages_are_read_twice(data: bytes) -> None:
    assert not is_plain(data, 1)


def test_pages_are_counted_in_the_tree() -> None:
    for data in (text_pdf(*"abc"), counted_as(text_pdf(*"abc"), 1), counted_as(text_pdf(*"abc"), 9)):
        assert Structure(data).pages == 3
    assert Structure(encrypted_pdf("")).pages == 1


def test_a_wrong_count_is_mended_in_a_copy_and_a_right_one_needs_none() -> None:
    assert Structure(text_pdf(*"abc")).mended(3, 3) == (None, False)
    mended, layers = Structure(counted_as(text_pdf(*"abc"), 1)).mended(3, 1)
    assert mended is not None
    assert not layers
    assert len(pdfium.PdfDocument(mended)) == 3


@pytest.mark.parametrize(
    ("unit", "points"), [(b"/UserUnit 2", 2.0), (b"", 1.0), (b"/UserUnit -1", 1.0), (b"/UserUnit /Two", 1.0)]
)
def test_a_unit_is_a_positive_number_of_points(unit: bytes, points: float) -> None:
    assert Structure(one_page(words("a"), page=unit)).unit(0) == points


def test_the_largest_mask_counts_for_images_of_one_size() -> None:
    data = one_page(
        b"",
        image_object(10, 10, b"/SMask 8 0 R"),
        image_object(10, 10, b"/Mask 9 0 R"),
        image_object(30, 20),
        image_object(20, 40),
        resources=b"/XObject << /A 6 0 R /B 7 0 R >>",
    )
    assert Structure(data).masks(0) == {(10, 10): (30, 40)}
    assert Structure(pages_pdf([b""])).masks(0) == {}


@pytest.mark.parametrize(
    ("catalog", "shown"),
    [
        (b"/Collection << >>", True),
        (b"/Collection << /View /T >>", True),
        (b"/Collection << /View /H >>", False),
        (b"", False),
    ],
)
def test_a_portfolio_shows_its_files_unless_it_hides_them(catalog: bytes, shown: bool) -> None:
    assert Structure(one_page(words("a"), catalog=catalog)).is_collection is shown
