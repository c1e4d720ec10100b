"""Text of a PDF page as a reader sees it: lines in reading order, form values, no hidden layers."""

import ctypes
import re
from collections.abc import Callable, Iterator
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as pdfium_c

from magbatch.documents.pdf_layers import SWITCHED_OFF

Box = tuple[float, float, float, float]  # left, bottom, right, top, in points

_UNSEEN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ufffe]+")  # white space, control characters, PDFium's mark for hyphens
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_SOFT_HYPHEN = "\xad"  # drawn as a hyphen on a page
_LINE_OF_NOTHING = re.compile(r"\n[ \t]*(?=\n)")
_PASSWORD = 1 << 13  # flag of a text field (ISO 32000-1, table 228)
_UNSEEN_FLAGS = pdfium_c.FPDF_ANNOT_FLAG_HIDDEN | pdfium_c.FPDF_ANNOT_FLAG_NOVIEW
_SWITCHES = (pdfium_c.FPDF_FORMFIELD_CHECKBOX, pdfium_c.FPDF_FORMFIELD_RADIOBUTTON)
_CHOICES = (pdfium_c.FPDF_FORMFIELD_COMBOBOX, pdfium_c.FPDF_FORMFIELD_LISTBOX)


def page_text(page: pdfium.PdfPage, *, layers: bool) -> str | None:
    """Return all text that a page shows; None if it shows none.

    Args:
        page: Page to read. Objects of hidden layers are removed from it.
        layers: Whether `pdf_layers` has marked the document's hidden content.
    """
    if layers:
        _remove_switched_off(page)
    shown = _content(page)
    values = "\n".join(_values(page))
    return "\n\n".join(part for part in (shown, values) if part) or None


def annotations(page: pdfium.PdfPage) -> Iterator[tuple[int, Any]]:
    """Yield the subtype and handle of each visible annotation. A handle is valid only until the next one."""
    for index in range(pdfium_c.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium_c.FPDFPage_GetAnnot(page, index)
        if not annotation:
            continue
        try:
            kind = pdfium_c.FPDFAnnot_GetSubtype(annotation)
            box = pdfium_c.FS_RECTF()
            pdfium_c.FPDFAnnot_GetRect(annotation, box)
            area = (box.right - box.left) * (box.top - box.bottom)
            if area and not pdfium_c.FPDFAnnot_GetFlags(annotation) & _UNSEEN_FLAGS:
                yield kind, annotation
        finally:
            pdfium_c.FPDFPage_CloseAnnot(annotation)


def _content(page: pdfium.PdfPage) -> str:
    """Return the text of the page's content stream.

    PDFium has two calls. The one for the whole page keeps the lines of turned pages, but ignores the page's box and
    loses characters above U+FFFF. The one for a box heeds both, but breaks such lines. If their texts differ, the text
    is assembled character by character.
    """
    reader = page.get_textpage()
    text, within = reader.get_text_range(), reader.get_text_bounded()
    if text.replace("\ufffe", "\x02") != within and not _is_same(text, within):
        text = _of_characters(reader, page.get_bbox())
    text = text.replace("\ufffe", "-").replace(_SOFT_HYPHEN, "-").replace("\r\n", "\n")
    return _CONTROLS.sub("", text.encode("utf-8", errors="ignore").decode()).strip()


def _is_same(text: str, within: str) -> bool:
    """Whether two texts differ only in white space, and in PDFium's two marks for hyphens."""
    return text.count("\ufffe") == within.count("\x02") and _UNSEEN.sub("", text) == _UNSEEN.sub("", within)


def _of_characters(reader: pdfium.PdfTextPage, box: Box) -> str:
    """Return the text of the characters that lie within the page's box, without lines that lose all characters."""
    left, bottom, right, top = (ctypes.c_double() for _ in range(4))
    found = []
    for index in range(reader.count_chars()):
        code = pdfium_c.FPDFText_GetUnicode(reader, index)
        if pdfium_c.FPDFText_IsHyphen(reader, index) == 1:
            code = ord("-")
        if not code:
            continue
        if pdfium_c.FPDFText_IsGenerated(reader, index) != 1:
            pdfium_c.FPDFText_GetCharBox(reader, index, left, right, bottom, top)
            across = left.value <= box[2] and right.value >= box[0]
            if not (across and bottom.value <= box[3] and top.value >= box[1]):
                continue
        found.append(chr(code) if code <= 0x10FFFF else "")
    # A character above U+FFFF may come as two surrogates.
    text = "".join(found).encode("utf-16-le", "surrogatepass").decode("utf-16-le", errors="ignore")
    return _LINE_OF_NOTHING.sub("", text.replace("\r\n", "\n").replace("\ufffe", ""))


def _values(page: pdfium.PdfPage) -> list[str]:
    """Return a line for each value of a form field or text box, which the page's content stream lacks."""
    lines: dict[str, None] = {}
    switches: dict[str, str] = {}
    for kind, annotation in annotations(page):
        if kind == pdfium_c.FPDF_ANNOT_FREETEXT:
            lines[_wide(pdfium_c.FPDFAnnot_GetStringValue, annotation, b"Contents").strip()] = None
        if kind != pdfium_c.FPDF_ANNOT_WIDGET or page.formenv is None:
            continue
        name = _name(page.formenv, annotation)
        if pdfium_c.FPDFAnnot_GetFormFieldType(page.formenv, annotation) in _SWITCHES:
            if pdfium_c.FPDFAnnot_IsChecked(page.formenv, annotation):
                switches[name] = _wide(pdfium_c.FPDFAnnot_GetFormFieldExportValue, page.formenv, annotation) or "On"
            lines.setdefault(_line(name, switches.setdefault(name, "Off")))
        else:
            value = _value(page.formenv, annotation).strip()
            lines |= {_line(name, value): None} if value else {}
    # A field of radio buttons has several widgets, of which at most one is on.
    off = {_line(name, "Off") for name, value in switches.items() if value != "Off"}
    on = [_line(name, value) for name, value in switches.items() if value != "Off"]
    return [line for line in dict.fromkeys([*lines, *on]) if line and line not in off]


def _line(name: str, value: str) -> str:
    return f"{name}: {value}" if name else value


def _name(form: Any, annotation: Any) -> str:
    """Return a field's name for people, else its name for programs."""
    called = _wide(pdfium_c.FPDFAnnot_GetFormFieldAlternateName, form, annotation)
    return (called or _wide(pdfium_c.FPDFAnnot_GetFormFieldName, form, annotation)).strip()


def _value(form: Any, annotation: Any) -> str:
    """Return the visible value of a text or choice field; empty for buttons, signatures and passwords."""
    kind = pdfium_c.FPDFAnnot_GetFormFieldType(form, annotation)
    if kind in _CHOICES:
        chosen = [
            _wide(pdfium_c.FPDFAnnot_GetOptionLabel, form, annotation, index)
            for index in range(max(pdfium_c.FPDFAnnot_GetOptionCount(form, annotation), 0))
            if pdfium_c.FPDFAnnot_IsOptionSelected(form, annotation, index)
        ]
        if any(chosen):
            return ", ".join(chosen)
    elif kind != pdfium_c.FPDF_FORMFIELD_TEXTFIELD:
        return ""
    if kind == pdfium_c.FPDF_FORMFIELD_TEXTFIELD and (
        pdfium_c.FPDFAnnot_GetFormFieldFlags(form, annotation) & _PASSWORD
    ):
        return ""
    return _wide(pdfium_c.FPDFAnnot_GetFormFieldValue, form, annotation).replace("\r\n", "\n").replace("\r", "\n")


def _wide(call: Callable[..., int], *arguments: Any) -> str:
    """Return a text that a call of PDFium gives as UTF-16 with a null character at its end.

    Args:
        call: Function of PDFium that takes a buffer and its size last, and returns the size in bytes.
        *arguments: First arguments of the call.
    """
    size = call(*arguments, None, 0)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    call(*arguments, ctypes.cast(buffer, ctypes.POINTER(pdfium_c.FPDF_WCHAR)), size)
    return buffer.raw[: size - 2].decode("utf-16-le", errors="ignore").replace("\0", "")


def _remove_switched_off(page: pdfium.PdfPage) -> None:
    """Remove the objects of hidden layers, innermost first; otherwise PDFium would give their text."""
    hidden = [item for item in page.get_objects() if _is_switched_off(item)]
    for item in reversed(hidden):
        holder, remove = (
            (item.container, pdfium_c.FPDFFormObj_RemoveObject)
            if item.container is not None
            else (page, pdfium_c.FPDFPage_RemoveObject)
        )
        if remove(holder, item):
            pdfium_c.FPDFPageObj_Destroy(item)


def _is_switched_off(item: pdfium.PdfObject) -> bool:
    value = ctypes.c_int()
    for index in range(pdfium_c.FPDFPageObj_CountMarks(item)):
        mark = pdfium_c.FPDFPageObj_GetMark(item, index)
        if pdfium_c.FPDFPageObjMark_GetParamIntValue(mark, SWITCHED_OFF, value) and value.value:
            return True
    return False
