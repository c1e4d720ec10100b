"""Read the pages of a document. Its bytes decide its type, never its name.

Documents are PDF files, TIFF files of several pages, images in one of `image_files.FORMATS`, and text in UTF-8, UTF-16
or UTF-32, whose pages end at form feeds. Call this only in a process that may crash (see `renderer`).
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from magbatch.counts import counted
from magbatch.documents.image_files import open_image, plain
from magbatch.documents.images import ImageGrid, shown
from magbatch.documents.texts import decoded, plain_text
from magbatch.errors import ErrorCode, RowError
from magbatch.rows import Page

PDF_HEADER = b"%PDF-"
_PDF = re.compile(rb"\s*%PDF-\d")
PDF_HEADER_BYTES = 1024  # the header lies within the first 1,024 bytes (ISO 32000-1, annex H)


@dataclass(frozen=True, slots=True)
class Want:
    """Pages, pictures and text that a job wants of a document.

    Attributes:
        grid: Sizes of the pictures; None if only text is wanted.
        text: Whether embedded text is wanted.
        most: Largest number of pages without pictures.
        most_images: Largest number of pages with pictures.
        cut: Whether pages above the limit are left out; otherwise they are an error.
        limit_names: Names of the spec's fields behind `most` and `most_images`.
        max_pixels: Largest number of pixels of an image, before it is scaled.
        no_images: Reason why the model takes no pictures, for the error if a document needs them; else None.
    """

    grid: ImageGrid | None
    text: bool
    most: int
    most_images: int
    cut: bool
    limit_names: tuple[str, str]
    max_pixels: int
    no_images: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        grid = [self.grid.longest_side, self.grid.cell] if self.grid is not None else None
        return {name: getattr(self, name) for name in self.__slots__} | {"grid": grid}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make a `Want` from the values of `to_dict`."""
        names = data["limit_names"]
        grid = ImageGrid(*data["grid"]) if data["grid"] is not None else None
        return cls(**(data | {"grid": grid, "limit_names": (names[0], names[1])}))

    def count(self, pages: int, *, images: bool) -> int:
        """Return the number of pages to take of a document.

        Args:
            pages: Number of pages of the document.
            images: Whether each page has a picture.

        Raises:
            RowError: `too_many_pages`, `document_empty`, or `images_unsupported`.
        """
        if not pages:
            raise RowError(ErrorCode.DOCUMENT_EMPTY, "it has no page")
        if images and self.no_images is not None:
            raise RowError(ErrorCode.IMAGES_UNSUPPORTED, self.no_images)
        most, name = (self.most_images, self.limit_names[1]) if images else (self.most, self.limit_names[0])
        if pages > most and not self.cut:
            raise RowError(
                ErrorCode.TOO_MANY_PAGES,
                f"it has {counted(pages, 'page')}, above {name}; input.document.overflow: truncate keeps the first",
            )
        return min(pages, most)


def read_pages(data: bytes, want: Want) -> tuple[int, Iterator[Page]]:
    """Read a document.

    Args:
        data: Content of the file.
        want: Pages, pictures and text that are wanted.

    Returns:
        Number of pages of the document, and an iterator over the wanted pages.

    Raises:
        RowError: The bytes are not a document, or it has no pages or too many. The iterator raises it for a damaged
            page.
    """
    if not data:
        raise RowError(ErrorCode.DOCUMENT_EMPTY, "it has no bytes")
    if _PDF.match(data, 0, PDF_HEADER_BYTES):
        return _pdf_pages(data, want)
    text = plain_text(data)
    if text is not None:
        return _pdf_pages(data, want) if _is_pdf(data) else text_pages(text, want)
    try:
        opened = open_image(data, want.max_pixels, "the file")
    except UnidentifiedImageError as error:
        within = PDF_HEADER in data[:PDF_HEADER_BYTES]
        return _pdf_pages(data, want) if within else _text_pages(data, want, str(error))
    except RowError as error:
        raise RowError(ErrorCode.DOCUMENT_TOO_LARGE, error.message) from error
    except Exception as error:  # a row's boundary: Pillow's openers share no class of errors
        with suppress(RowError):  # "BM" may start an image file or a sentence
            return _text_pages(data, want, "")
        raise RowError(ErrorCode.DOCUMENT_UNREADABLE, f"not an image that can be decoded: {plain(error)}") from error
    if want.grid is None and want.no_images is None:
        raise RowError(ErrorCode.DOCUMENT_EMPTY, "an image has no text; input.document.mode: both or images shows it")
    total = (
        int(getattr(opened, "n_frames", 1)) if opened.format == "TIFF" else 1
    )  # other formats have frames of animations
    return total, _frames(opened, want.count(total, images=True), want)


def _pdf_pages(data: bytes, want: Want) -> tuple[int, Iterator[Page]]:
    from magbatch.documents.pdf import PdfPages

    pdf = PdfPages(data)
    count = want.count(len(pdf), images=want.grid is not None or want.no_images is not None)
    return len(pdf), pdf.pages(count, want.grid, text=want.text)


def _frames(opened: Pillow.Image, count: int, want: Want) -> Iterator[Page]:
    assert want.grid is not None
    for index in range(count):
        try:
            opened.seek(index)
            image = shown(opened, want.max_pixels, want.grid, f"page {index + 1}")
        except RowError as error:
            raise RowError(ErrorCode.DOCUMENT_TOO_LARGE, error.message) from error
        except MemoryError:
            raise
        except Exception as error:
            raise RowError(
                ErrorCode.DOCUMENT_UNREADABLE, f"page {index + 1} cannot be decoded: {plain(error)}"
            ) from error
        yield Page(index + 1, image=image)


def _is_pdf(data: bytes) -> bool:
    """Whether a text with a PDF header in it is a PDF that starts a little later, rather than a text about PDFs."""
    if PDF_HEADER not in data[:PDF_HEADER_BYTES]:
        return False
    from magbatch.documents.pdf import PdfPages

    try:
        PdfPages(data)
    except RowError as error:
        return error.code is not ErrorCode.DOCUMENT_UNREADABLE
    return True


def _text_pages(data: bytes, want: Want, otherwise: str) -> tuple[int, Iterator[Page]]:
    try:
        return text_pages(decoded(data), want)
    except UnicodeDecodeError as error:
        raise RowError(
            ErrorCode.DOCUMENT_UNREADABLE,
            f"neither a PDF, nor an image, nor text in UTF-8 or UTF-16 (convert other encodings): {otherwise}",
        ) from error


def text_pages(text: str, want: Want) -> tuple[int, Iterator[Page]]:
    """Split a text into pages at form feeds; see `read_pages`.

    Raises:
        RowError: The text is empty or has null characters or too many pages.
    """
    if "\0" in text:
        raise RowError(
            ErrorCode.DOCUMENT_UNREADABLE,
            "neither a PDF, nor an image, nor text: it holds null characters (UTF-16 needs a byte order mark)",
        )
    texts = [page.strip("\r\n") for page in text.split("\f")]
    while texts and not texts[-1].strip():
        texts.pop()
    if not any(page.strip() for page in texts):
        raise RowError(ErrorCode.DOCUMENT_EMPTY, "its text is empty")
    count = want.count(len(texts), images=False)
    return len(texts), (Page(number, page) for number, page in enumerate(texts[:count], start=1))
