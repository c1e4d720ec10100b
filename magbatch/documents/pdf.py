"""PDF -> pages: a picture at the size in which the model sees it, and the text that is embedded.

Not thread-safe, and in C++ on hostile input: it runs in the renderer's process alone (see renderer).
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

logging.getLogger("pypdfium2").setLevel(logging.ERROR)  # it warns of each XFA form that it cannot draw one
POINTS_PER_INCH = 72.0
MAX_DPI = 200.0  # of drawn pages: a receipt of 5 cm gains nothing by 1,540 pixels
SCAN_COVER = 0.8  # of a page, by one image
MAX_SCAN_OBJECTS = 4096  # looked at for it: OCR leaves one for each word
# No scan of a sheet of paper is coarser than a letter page at 100 dpi; a receipt's picture may be as small as it is.
SHEET_POINTS = 700.0
LEAST_SHEET_PIXELS = 1100
XFA_PAGES = 20  # looked at for fields
NAMED_FILES = 3
# Acrobat has templates draw the pages if the configuration says so (XFA 3.3, "dynamicRender").
_DYNAMIC = re.compile(rb"<dynamicRender>\s*required")
_PLACEHOLDER = re.compile(r"please wait|adobe\.com/go/reader|adobe reader|pdf viewer may not be able", re.IGNORECASE)
_NOT_DRAWN = (pdfium_c.FPDF_ANNOT_LINK, pdfium_c.FPDF_ANNOT_POPUP)


class PdfPages:
    """The pages of one file.

    Args:
        data: The file.

    Raises:
        RowError: `document_encrypted`, `document_empty` or `document_unreadable`; the last also for a file whose pages
            are not what a reader shows: a portfolio, a dynamic XFA form.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._document = _opened(data)
        self._count, self._plain = len(self._document), is_plain(data, len(self._document))
        if not self._plain and self._structure is not None:
            self._count = self._structure.pages or self._count
            _refuse_portfolio(self._document, self._structure)
        with suppress(pdfium.PdfiumError):  # a page that is damaged says so when it is shown
            _refuse_dynamic_form(self._document)

    def __len__(self) -> int:
        return self._count

    def pages(self, count: int, grid: ImageGrid | None, *, text: bool) -> Iterator[Page]:
        """The first pages.

        Args:
            count: Number of pages.
            grid: The sizes of their pictures; None makes none.
            text: Whether their text is wanted.

        Raises:
            RowError: `document_unreadable`, at the first page that is damaged.
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
        """None for a file that PDFium mends and pypdf does not."""
        try:
            structure = Structure(self._data)
            return structure if structure.pages else None
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - a file's boundary: whatever it makes pypdf raise, PDFium has opened it
            return None

    def _masks(self, index: int) -> dict[Size, Size]:
        try:
            return self._structure.masks(index) if self._structure is not None else {}
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - as above; a sheet's picture is not too coarse without them
            return {}

    def _unit(self, index: int) -> float:
        try:
            return 1.0 if self._plain or self._structure is None else self._structure.unit(index)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - as above; a page that pypdf cannot read has its size in points
            return 1.0

    def _mend(self, count: int) -> bool:
        """Open the file anew if PDFium misses pages of it or shows layers otherwise than readers do.

        Returns:
            Whether content that is switched off is marked.
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
    with suppress(pdfium.PdfiumError):  # a broken form is not drawn; the page below it is
        document.init_forms()
    return document


def _refusal(data: bytes, error: pdfium.PdfiumError) -> RowError:
    """Why a file is not opened: one without pages is, for PDFium, but pypdfium2 gives the error of the file before."""
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
    """Refuse an XFA form whose pages Acrobat draws from a template, instead of the placeholder that the PDF holds."""
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
            "the PDF is a dynamic XFA form, which Acrobat alone can show: its page is a placeholder; print it to a PDF "
            "first",
        )


def _xfa(document: pdfium.PdfDocument) -> bytes:
    """The packets of an XFA form."""
    found = b""
    for index in range(max(pdfium_c.FPDF_GetXFAPacketCount(document), 0)):
        size = ctypes.c_ulong()
        pdfium_c.FPDF_GetXFAPacketContent(document, index, None, 0, size)
        packet = ctypes.create_string_buffer(size.value)
        if pdfium_c.FPDF_GetXFAPacketContent(document, index, packet, size.value, size):
            found += packet.raw
    return found


def _is_uniform(image: Image) -> bool:
    """Whether an image has one colour; most others are told by their packed size."""
    if len(image.packed) * 100 > image.size_bytes:
        return False
    pixels = np.frombuffer(image.rgb, np.uint8).reshape(-1, 3)
    return bool((pixels == pixels[0]).all())


def _picture(page: pdfium.PdfPage, unit: float, grid: ImageGrid, masks: Callable[[], dict[Size, Size]]) -> Image:
    """The picture of a page, of whose units each is so many points."""
    width, height = (max(side * unit, 1.0) for side in page.get_size())
    largest = grid.longest_side / max(width, height)
    density = _scan_density(page, width / unit, height / unit, largest * unit, masks)
    density = density / unit if density is not None else None
    if density is not None and max(width, height) >= SHEET_POINTS:
        density = max(density, LEAST_SHEET_PIXELS / max(width, height))
    scale = min(density or MAX_DPI / POINTS_PER_INCH, largest)
    # At once in whole cells, as Mistral's own preprocessing stretches an image: nothing is resampled twice.
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
    """Pixels a unit of the finest image, or mask of one, of a page that consists of images.

    Args:
        page: The page.
        width: Of it, in its units.
        height: Likewise.
        largest: Density above which a finer one makes no difference.
        masks: Gives the sizes of the masks of the page's images, by those of the images.

    Returns:
        None if anything is drawn on the page: text, lines, annotations, fields.
    """
    if any(kind not in _NOT_DRAWN for kind, _ in annotations(page)):
        return None
    sizes: list[tuple[Size, float, float]] = []
    covered = False
    for seen, item in enumerate(page.get_objects(max_depth=1)):
        if seen == MAX_SCAN_OBJECTS:
            return None
        if item.type == pdfium_c.FPDF_PAGEOBJ_TEXT:
            if pdfium_c.FPDFTextObj_GetTextRenderMode(item) != pdfium_c.FPDF_TEXTRENDERMODE_INVISIBLE:
                return None
            continue  # what OCR leaves beneath a scan
        if item.type != pdfium_c.FPDF_PAGEOBJ_IMAGE:
            return None
        a, b, c, d, _, _ = item.get_matrix().get()  # the image is the unit square, as it is drawn
        across, down = math.hypot(a, b), math.hypot(c, d)
        if across and down:
            sizes.append((item.get_px_size(), across, down))
        covered |= abs(a * d - b * c) >= SCAN_COVER * width * height
    if not covered:
        return None
    density = max(max(size[0] / across, size[1] / down) for size, across, down in sizes)
    if density >= largest:
        return density
    # Layered scans: a coarse colour is drawn through a fine mask.
    finer = masks()
    return max(
        [
            density,
            *(max(finer[size][0] / across, finer[size][1] / down) for size, across, down in sizes if size in finer),
        ]
    )
