"""PDF -> pages: a picture at the size in which the model sees it, and the text that is embedded.

Not thread-safe, and in C++ on hostile input: it runs in the renderer's process alone (see renderer).
"""

import math
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from magbatch.documents.images import ImageGrid
from magbatch.errors import ErrorCode, RowError
from magbatch.rows import Image, Page

POINTS_PER_INCH = 72.0
MAX_DPI = 200.0  # of drawn pages: a receipt of 5 cm gains nothing by 1,540 pixels
SCAN_COVER = 0.8  # of a page, by one image
MAX_SCAN_OBJECTS = 4096  # looked at for it: OCR leaves one for each word


class PdfPages:
    """The pages of one file.

    Args:
        data: The file.

    Raises:
        RowError: `document_encrypted` or `document_unreadable`.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._document = pdfium.PdfDocument(data)
        except pdfium.PdfiumError as error:
            raise _refusal(data, error) from error
        with suppress(pdfium.PdfiumError):  # a broken form is not drawn; the page below it is
            self._document.init_forms()

    def __len__(self) -> int:
        return len(self._document)

    def pages(self, count: int, grid: ImageGrid | None, *, text: bool) -> Iterator[Page]:
        """The first pages.

        Args:
            count: How many.
            grid: The sizes of their pictures; None makes none.
            text: Whether their text is wanted.

        Raises:
            RowError: `document_unreadable`, at the first page that is damaged.
        """
        for index in range(count):
            try:
                page = self._document[index]
                picture = _picture(page, grid) if grid is not None else None
                words = _text(page) if text else None
                page.close()
            except pdfium.PdfiumError as error:
                raise RowError(ErrorCode.DOCUMENT_UNREADABLE, f"page {index + 1} is damaged: {error}") from error
            yield Page(index + 1, words, picture)


def _refusal(data: bytes, error: pdfium.PdfiumError) -> RowError:
    """Why a file is not opened: one without pages is, for PDFium, but pypdfium2 gives the error of the file before."""
    opened = pdfium_c.FPDF_LoadMemDocument64(data, len(data), None)
    if opened:
        pdfium_c.FPDF_CloseDocument(opened)
        return RowError(ErrorCode.DOCUMENT_EMPTY, "the PDF has no page")
    if pdfium_c.FPDF_GetLastError() == pdfium_c.FPDF_ERR_PASSWORD:
        return RowError(ErrorCode.DOCUMENT_ENCRYPTED, "the PDF needs a password; decrypt it first")
    return RowError(ErrorCode.DOCUMENT_UNREADABLE, f"not a PDF that can be read: {error}")


def _text(page: pdfium.PdfPage) -> str | None:
    found = page.get_textpage().get_text_bounded()
    # What is no Unicode, and the marks that PDFium sets for hyphens at line ends.
    text = found.encode("utf-8", errors="ignore").decode().replace("\0", "").replace("\ufffe", "-")
    return text.replace("\r\n", "\n").strip() or None


def _picture(page: pdfium.PdfPage, grid: ImageGrid) -> Image:
    width, height = (max(side, 1.0) for side in page.get_size())
    density = _scan_density(page, width, height) or MAX_DPI / POINTS_PER_INCH
    scale = min(density, grid.longest_side / max(width, height))
    # At once in whole cells, as Mistral's own preprocessing stretches an image: nothing is resampled twice.
    columns, rows = grid.fit(max(round(width * scale), 1), max(round(height * scale), 1))
    bitmap = pdfium.PdfBitmap.new_native(columns, rows, pdfium_c.FPDFBitmap_BGR, rev_byteorder=True)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, columns, rows)
    flags = pdfium_c.FPDF_ANNOT | pdfium_c.FPDF_REVERSE_BYTE_ORDER
    pdfium_c.FPDF_RenderPageBitmap(bitmap, page, 0, 0, columns, rows, 0, flags)
    if page.formenv is not None:
        pdfium_c.FPDF_FFLDraw(page.formenv, bitmap, page, 0, 0, columns, rows, 0, flags)
    return Image.of(columns, rows, np.ascontiguousarray(bitmap.to_numpy()).data)


def _scan_density(page: pdfium.PdfPage, width: float, height: float) -> float | None:
    """Pixels a point of the finest image of a page that consists of images; None where anything is drawn on it."""
    density, covered = 0.0, False
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
            columns, rows = item.get_px_size()
            density = max(density, columns / across, rows / down)
        covered |= abs(a * d - b * c) >= SCAN_COVER * width * height
    return density if covered else None
