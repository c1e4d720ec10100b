"""Facts about a PDF that PDFium does not tell, read with pypdf: pages of the tree, layers, masks, portfolios.

Most files need none of it, and a scan of their bytes shows that. Reading every file twice would take half as long
again.
"""

import logging
import math
import re
import zlib
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from typing import Any

import pypdf
from pypdf.generic import DictionaryObject, NameObject, NumberObject

from magbatch.documents.pdf_layers import mark

Size = tuple[int, int]  # columns and rows of pixels

_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_TELLING = (b"/OCProperties", b"/Collection", b"/UserUnit")
_OBJECTS = b"/ObjStm"
_HEADER_BYTES = 4096  # largest distance between an object stream's type and its data
_MOST_OBJECT_BYTES = 1 << 26  # bytes of one object stream that are inflated
logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its warnings about damaged files belong to rows, not to the log


def is_plain(data: bytes, pages: int) -> bool:
    """Whether PDFium alone reads a file correctly: all pages counted, units of points, no layers and no portfolio.

    Args:
        data: Content of the file.
        pages: Number of pages that PDFium counts.
    """
    found = 0
    for objects in _objects(data):
        if objects is None or any(name in objects for name in _TELLING):
            return False
        found += len(_PAGE.findall(objects))
    return found == pages


def _objects(data: bytes) -> Iterator[bytes | None]:
    """Yield the file's bytes, then each object stream, inflated; None if it cannot be inflated (e.g. encrypted)."""
    yield data
    at = data.find(_OBJECTS)
    while at >= 0:
        start = data.find(b"stream", at, at + _HEADER_BYTES)
        if start < 0:
            yield None
            return
        start += len(b"stream")
        start += 2 if data[start : start + 2] == b"\r\n" else 1
        end = max(data.find(b"endstream", start), start)
        try:
            inflated: bytes | None = zlib.decompressobj().decompress(data[start:end], _MOST_OBJECT_BYTES)
        except zlib.error:
            inflated = None
        yield inflated
        at = data.find(_OBJECTS, end)


class Structure:
    """A PDF as pypdf reads it.

    Every method may raise any `Exception`: pypdf has no single class of errors for damaged files.

    Args:
        data: Content of the file.
    """

    def __init__(self, data: bytes) -> None:
        self._reader = pypdf.PdfReader(BytesIO(data))
        self._catalog = self._reader.root_object

    @cached_property
    def pages(self) -> int:
        """Number of pages in the tree, counted: the tree's own /Count may be wrong."""
        return len(self._reader.pages)

    @property
    def is_collection(self) -> bool:
        """Whether a reader shows the embedded files instead of the pages: a portfolio (ISO 32000-1, 7.11.6)."""
        shown = _resolved(self._catalog.get("/Collection"))
        return isinstance(shown, DictionaryObject) and str(shown.get("/View", "/D")) != "/H"

    def masks(self, page: int) -> dict[Size, Size]:
        """Return the sizes of masks, by the sizes of the images that they belong to.

        Images of the same size share an entry, with the largest of their masks. An image without masks has (0, 0).

        Args:
            page: Index of the page, from 0.
        """
        found: dict[Size, Size] = {}
        resources = _dict(self._reader.pages[page].get("/Resources"))
        for image in map(_dict, _dict(resources.get("/XObject")).values()):
            size = _size(image)
            for mask in (_size(_dict(image.get(key))) for key in ("/SMask", "/Mask")):
                other = found.get(size, (0, 0))
                found[size] = max(mask[0], other[0]), max(mask[1], other[1])
        return found

    def unit(self, page: int) -> float:
        """Return the points per unit of a page's sizes (ISO 32000-1, 14.11.1); PDFium takes units for points.

        Args:
            page: Index of the page, from 0.
        """
        unit = _resolved(self._reader.pages[page].get("/UserUnit"))
        return float(unit) if isinstance(unit, int | float) and 0 < unit < math.inf else 1.0

    def mended(self, first: int, counted: int) -> tuple[bytes | None, bool]:
        """Return a copy of the file that PDFium shows correctly.

        Args:
            first: Number of pages that are wanted.
            counted: Number of pages that PDFium counts.

        Returns:
            Bytes of the copy, or None if the file needs none; whether hidden content is marked in it.
        """
        switched_off = mark(self._catalog, [self._reader.pages[index] for index in range(min(first, self.pages))])
        if not switched_off and counted == self.pages:
            return None, False
        _dict(self._catalog["/Pages"])[NameObject("/Count")] = NumberObject(self.pages)
        sink = BytesIO()
        pypdf.PdfWriter(clone_from=self._reader).write(sink)
        return sink.getvalue(), switched_off


def _size(image: DictionaryObject) -> Size:
    """Return columns and rows in pixels; (0, 0) if it is not an image, such as a colour-key mask."""
    columns, rows = (_resolved(image.get(key)) for key in ("/Width", "/Height"))
    return (int(columns), int(rows)) if isinstance(columns, int) and isinstance(rows, int) else (0, 0)


def _resolved(item: Any) -> Any:
    return item.get_object() if item is not None else None


def _dict(item: Any) -> DictionaryObject:
    found = _resolved(item)
    return found if isinstance(found, DictionaryObject) else DictionaryObject()
