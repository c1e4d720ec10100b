"""Read the pages of a PDF: a picture at the size in which the model sees it, and the embedded text.

PDFium is C++ on untrusted bytes and not thread-safe: use it only in the renderer's process (see `renderer`).
"""

import ctypes
import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from magbatch.documents.images import ImageGrid
from magbatch.documents.pdf_structure import Size, Structure, is_plain
from magbatch.documents.pdf_text import annotations, page_text
from magbatch.errors import ErrorCode, RowError
from magbatch.rows import Image, Page

logging.getLogger("pypdfium2").setLevel(logging.ERROR)  # it warns of each XFA form that it cannot draw
POINTS_PER_INCH = 72.0
MAX_DPI = 200.0  # resolution of drawn pages: a receipt of 5 cm gains nothing from 1,540 pixels
SCAN_COVER = 0.8  # share of a page that one image covers if the page is a scan
MAX_SCAN_OBJECTS = 4096  # page objects read to decide; OCR leaves one for each word
# The picture of a sheet has at least as many pixels as a letter page at 100 dpi. Smaller pages may have fewer.
SHEET_POINTS = 700.0
LEAST_SHEET_PIXELS = 1100
XFA_PAGES = 20  # pages of an XFA form that are searched for fields
NAMED_FILES = 3  # attached files named in a message
# Acrobat has templates draw the pages if the configuration says so (XFA 3.3, "dynamicRender").
_DYNAMIC = re.compile(rb"<dynamicRender>\s*required")
_PLACEHOLDER = re.compile(r"please wait|adobe\.com/go/reader|adobe reader|pdf viewer may not be able", re.IGNORECASE)
_NOT_DRAWN = (pdfium_c.FPDF_ANNOT_LINK, pdfium_c.FPDF_ANNOT_POPUP)


class PdfPages:
    """Pages of one PDF.

    Args:
        data: Content of the file.

    Raises:
        RowError: `document_encrypted`, `document_empty` or `document_unreadable`. The last also stands for a portfolio
            or a dynamic XFA form, whose pages are only a placeholder.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._document = _opened(data)
        self._count, self._plain = len(self._document), is_plain(data, len(self._document))
        if not self._plain and self._structure is not None:
            self._count = self._structure.pages or self._count
            _refuse_portfolio(self._document, self._structure)
        with suppress(pdfium.PdfiumError):  # a damaged page is reported when it is rendered
            _refuse_dynamic_form(self._document)

    def __len__(self) -> int:
        return self._count

    def pages(self, count: int, grid: ImageGrid | None, *, text: bool) -> Iterator[Page]:
        """Render the first pages.

        Args:
            count: Number of pages.
            grid: Sizes of the pictures; None for no pictures.
            text: Whether the embedded text is wanted.

        Raises:
            RowError: `document_unreadable`, at the first damaged page.
        """
        layers = self._mend(count)
        for index in range(count):
            try:
                page = self._document[index]
                picture = None
                if grid is not None:
                    picture = _picture(page, self._unit(index), grid, partial(self._masks, index))
                blank = picture is not None and _is_uniform(picture)
                words = page_text(page, layers=layers) if text else None
                page.close()
            except pdfium.PdfiumError as error:
                raise RowError(ErrorCode.DOCUMENT_UNREADABLE, f"page {index + 1} is damaged: {error}") from error
            yield Page(index + 1, words, picture, blank=blank and words is None)

    @cached_property
    def _structure(self) -> Structure | None:
        """The file as pypdf reads it; None if only PDFium can repair it."""
        try:
            structure = Structure(self._data)
            return structure if structure.pages else None
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - pypdf raises errors of any type; PDFium has opened the file
            return None

    def _masks(self, index: int) -> dict[Size, Size]:
        try:
            return self._structure.masks(index) if self._structure is not None else {}
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - as above; without masks a sheet still has `LEAST_SHEET_PIXELS`
            return {}

    def _unit(self, index: int) -> float:
        try:
            return 1.0 if self._plain or self._structure is None else self._structure.unit(index)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - as above; the page's size then counts as points
            return 1.0

    def _mend(self, count: int) -> bool:
        """Reopen a repaired copy of the file if PDFium misses pages, or shows other layers than PDF readers do.

        Args:
            count: Number of pages that are rendered.

        Returns:
            Whether content of hidden layers is marked in the copy.
        """
        if self._plain or self._structure is None:
            return False
        try:
            mended, layers = self._structure.mended(count, len(self._document))
        except MemoryError:
            raise
        except Exception as error:
            raise RowError(
                ErrorCode.DOCUMENT_UNREADABLE,
                f"the PDF's layers or page tree are damaged: {type(error).__name__}: {error}",
            ) from error
        if mended is not None:
            self._document = _opened(mended)
        return layers


def _opened(data: bytes) -> pdfium.PdfDocument:
    try:
        document = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        raise _refusal(data, error) from error
    with suppress(pdfium.PdfiumError):  # a broken form is not drawn, but the page is
        document.init_forms()
    return document


def _refusal(data: bytes, error: pdfium.PdfiumError) -> RowError:
    """Return the error of a file that cannot be opened.

    PDFium opens a file without pages; pypdfium2 then raises the error of an earlier file. So the file is opened again.
    """
    opened = pdfium_c.FPDF_LoadMemDocument64(data, len(data), None)
    if opened:
        pdfium_c.FPDF_CloseDocument(opened)
        return RowError(ErrorCode.DOCUMENT_EMPTY, "the PDF has no page")
    if pdfium_c.FPDF_GetLastError() == pdfium_c.FPDF_ERR_PASSWORD:
        return RowError(ErrorCode.DOCUMENT_ENCRYPTED, "the PDF needs a password; decrypt it first")
    return RowError(ErrorCode.DOCUMENT_UNREADABLE, f"not a PDF that can be read: {error}")


def _refuse_portfolio(document: pdfium.PdfDocument, structure: Structure) -> None:
    files = document.count_attachments()
    if not files or not structure.is_collection:
        return
    names = [repr(document.get_attachment(index).get_name()) for index in range(min(files, NAMED_FILES))]
    more = ", …" if files > NAMED_FILES else ""
    raise RowError(
        ErrorCode.DOCUMENT_UNREADABLE,
        f"the PDF is a portfolio: its page is a cover, its documents are {files} attached files ({', '.join(names)}"
        f"{more}); give those, as a list",
    )


def _refuse_dynamic_form(document: pdfium.PdfDocument) -> None:
    """Refuse an XFA form whose pages Acrobat draws from a template; the PDF itself holds only a placeholder."""
    kind = document.get_formtype()
    if kind not in (pdfium_c.FORMTYPE_XFA_FULL, pdfium_c.FORMTYPE_XFA_FOREGROUND):
        return
    pages = [document[index] for index in range(min(len(document), XFA_PAGES))]
    if any(subtype == pdfium_c.FPDF_ANNOT_WIDGET for page in pages for subtype, _ in annotations(page)):
        return
    placeholder = len(document) == 1 and _PLACEHOLDER.search(page_text(pages[0], layers=False) or "") is not None
    if placeholder or kind == pdfium_c.FORMTYPE_XFA_FULL or _DYNAMIC.search(_xfa(document)):
        raise RowError(
            ErrorCode.DOCUMENT_UNREADABLE,
            "the PDF is a dynamic XFA form, which only Acrobat can show: its page is a placeholder; print it to a PDF "
            "first",
        )


def _xfa(document: pdfium.PdfDocument) -> bytes:
    """Return the packets of an XFA form, joined."""
    found = b""
    for index in range(max(pdfium_c.FPDF_GetXFAPacketCount(document), 0)):
        size = ctypes.c_ulong()
        pdfium_c.FPDF_GetXFAPacketContent(document, index, None, 0, size)
        packet = ctypes.create_string_buffer(size.value)
        if pdfium_c.FPDF_GetXFAPacketContent(document, index, packet, size.value, size):
            found += packet.raw
    return found


def _is_uniform(image: Image) -> bool:
    """Whether an image has one colour only."""
    if len(image.packed) * 100 > image.size_bytes:  # one colour compresses better than this
        return False
    pixels = np.frombuffer(image.rgb, np.uint8).reshape(-1, 3)
    return bool((pixels == pixels[0]).all())


def _picture(page: pdfium.PdfPage, unit: float, grid: ImageGrid, masks: Callable[[], dict[Size, Size]]) -> Image:
    """Render a page.

    Args:
        page: Page to render.
        unit: Points per unit of the page's sizes.
        grid: Sizes that the model takes.
        masks: Callable that returns the sizes of masks, by the sizes of the page's images.
    """
    width, height = (max(side * unit, 1.0) for side in page.get_size())
    largest = grid.longest_side / max(width, height)
    density = _scan_density(page, width / unit, height / unit, largest * unit, masks)
    density = density / unit if density is not None else None
    if density is not None and max(width, height) >= SHEET_POINTS:
        density = max(density, LEAST_SHEET_PIXELS / max(width, height))
    scale = min(density or MAX_DPI / POINTS_PER_INCH, largest)
    # Rendered in whole cells, as Mistral's preprocessing would stretch the image: nothing is resampled twice.
    columns, rows = grid.fit(max(round(width * scale), 1), max(round(height * scale), 1))
    bitmap = pdfium.PdfBitmap.new_native(columns, rows, pdfium_c.FPDFBitmap_BGR, rev_byteorder=True)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, columns, rows)
    flags = pdfium_c.FPDF_ANNOT | pdfium_c.FPDF_REVERSE_BYTE_ORDER
    pdfium_c.FPDF_RenderPageBitmap(bitmap, page, 0, 0, columns, rows, 0, flags)
    if page.formenv is not None:
        pdfium_c.FPDF_FFLDraw(page.formenv, bitmap, page, 0, 0, columns, rows, 0, flags)
    return Image.of(columns, rows, np.ascontiguousarray(bitmap.to_numpy()).data)


def _scan_density(
    page: pdfium.PdfPage, width: float, height: float, largest: float, masks: Callable[[], dict[Size, Size]]
) -> float | None:
    """Return the resolution of a scanned page: that of its finest image or mask.

    Args:
        page: Page to look at.
        width: Width of the page in its units.
        height: Height of the page in its units.
        largest: Resolution above which a finer image makes no difference.
        masks: Callable that returns the sizes of masks, by the sizes of the page's images.

    Returns:
        Pixels per unit of the page; None if the page is not a scan.
    """
    images = _scanned_images(page, width, height)
    if images is None:
        return None
    density = max(max(size[0] / across, size[1] / down) for size, across, down in images)
    if density >= largest:
        return density
    # In a layered scan a coarse colour is drawn through a fine mask.
    finer = masks()
    fine = (max(finer[size][0] / across, finer[size][1] / down) for size, across, down in images if size in finer)
    return max([density, *fine])


def _scanned_images(page: pdfium.PdfPage, width: float, height: float) -> list[tuple[Size, float, float]] | None:
    """Return the images of a scanned page: the size in pixels, the width and the height as drawn, in the page's units.

    None if the page is not a scan: no image covers it, or it shows something else, such as text, lines or fields.
    """
    if any(kind not in _NOT_DRAWN for kind, _ in annotations(page)):
        return None
    images: list[tuple[Size, float, float]] = []
    covered = False
    for seen, item in enumerate(page.get_objects(max_depth=1)):
        if seen == MAX_SCAN_OBJECTS:
            return None
        if item.type == pdfium_c.FPDF_PAGEOBJ_TEXT:
            if pdfium_c.FPDFTextObj_GetTextRenderMode(item) != pdfium_c.FPDF_TEXTRENDERMODE_INVISIBLE:
                return None
            continue  # OCR put this invisible text under the scan
        if item.type != pdfium_c.FPDF_PAGEOBJ_IMAGE:
            return None
        a, b, c, d, _, _ = item.get_matrix().get()  # maps the unit square to the image as drawn
        across, down = math.hypot(a, b), math.hypot(c, d)
        if across and down:
            images.append((item.get_px_size(), across, down))
        covered |= abs(a * d - b * c) >= SCAN_COVER * width * height
    return images if covered else None
