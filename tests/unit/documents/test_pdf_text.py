"""The text of a page is what the page shows: its lines and form values, and nothing outside its box."""

from collections.abc import Callable

import pytest
from support.document_files import one_page, packed, pages_pdf, stream

from magbatch.rows import Page

Read = Callable[..., tuple[int, list[Page]]]
INVOICE = ["INVOICE 2026-0042", "Seller: Example GmbH", "Item A 3 x 14.20 = 42.60", "TOTAL 49.71 EUR"]
TABLE = ["a0 b0 c0", "a1 b1 c1", "a2 b2 c2", "a3 b3 c3"]
HELVETICA = b"/AcroForm << /Fields [%s] /NeedAppearances true /DA (/F 12 Tf 0 g) /DR << /Font << /F 5 0 R >> >> >>"


def text_of(read: Read, data: bytes) -> str | None:
    (page,) = read(data, grid=None)[1]
    return page.text


def turned(rotate: int, lines: list[str], width: float, height: float, *, cells: bool) -> bytes:
    """Content that is upright once a page of that size is turned clockwise."""
    a, b, c, d, e, f = {
        0: (1, 0, 0, 1, 0, 0),
        90: (0, 1, -1, 0, width, 0),
        180: (-1, 0, 0, -1, width, height),
        270: (0, -1, 1, 0, 0, height),
    }[rotate]
    top = (height if rotate % 180 == 0 else width) - 72
    content = b""
    for row, line in enumerate(lines):
        for column, shown in enumerate(line.split() if cells else [line]):
            x, y = 72 + 100 * column, top - 20 * row
            place = (a, b, c, d, a * x + c * y + e, b * x + d * y + f)
            content += b"BT /F 14 Tf %f %f %f %f %f %f Tm (%s) Tj ET " % (*place, shown.encode())
    return content


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("box", [(612, 792), (792, 612)])
@pytest.mark.parametrize("cells", [False, True], ids=["lines", "table"])
def test_a_turned_page_has_its_lines(read: Read, rotate: int, box: tuple[int, int], cells: bool) -> None:
    lines = TABLE if cells else INVOICE
    content = turned(rotate, lines, *box, cells=cells)
    assert text_of(read, pages_pdf([content], box=box, extra=b"/Rotate %d" % rotate)) == "\n".join(lines)


@pytest.mark.parametrize("rotate", [0, 90, 270])
def test_what_lies_beside_the_page_is_no_text_of_it(read: Read, rotate: int) -> None:
    """Crop marks, cut margins, notes of the printer."""
    box = (612, 792)
    content = turned(rotate, INVOICE, *box, cells=False)
    outside = b"BT /F 14 Tf 1 0 0 1 20 15 Tm (CUT OFF) Tj ET BT /F 14 Tf 1 0 0 1 -300 400 Tm (OUTSIDE) Tj ET "
    data = pages_pdf([outside + content + outside], box=box, extra=b"/Rotate %d /CropBox [40 40 572 752]" % rotate)
    assert text_of(read, data) == "\n".join(INVOICE)


def to_unicode(*codes: tuple[int, str]) -> bytes:
    lines = b"".join(b"<%02x> <%s>\n" % (code, text.encode("utf-16-be").hex().encode()) for code, text in codes)
    return stream(
        b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def\n"
        b"1 begincodespacerange <00> <ff> endcodespacerange\n%d beginbfchar\n%sendbfchar\nendcmap end end"
        % (len(codes), lines)
    )


def mapped(content: bytes, *codes: tuple[int, str], page: bytes = b"") -> bytes:
    """A page whose font /G has other characters for some codes."""
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding /ToUnicode 7 0 R >>"
    return one_page(content.replace(b"/F ", b"/G "), font, to_unicode(*codes), page=page).replace(
        b"/Font << /F 5 0 R >>", b"/Font << /F 5 0 R /G 6 0 R >>"
    )


LINES = b"BT /F 14 Tf 72 700 Td (It is ACME%s) Tj 0 -18 Td (2026 and pays the self%s) Tj 0 -18 Td (employed) Tj ET"


@pytest.mark.parametrize(
    "data",
    [
        one_page(LINES % (b"-", b"-")),
        one_page(LINES % (b"\xad", b"\xad")),
        mapped(LINES % (b"\x05", b"\x05"), (5, "\u00ad")),
        pages_pdf([LINES % (b"-", b"-")], extra=b"/CropBox [0 0 500 800]"),
        one_page(b"BT /F 14 Tf 72 100 Td (ACME-2026 self-employed) Tj ET"),
        one_page(b"BT /F 14 Tf 72 100 Td (ACME\xad2026 self\xademployed) Tj ET"),
    ],
    ids=["at line ends", "soft", "mapped to soft", "cropped", "within lines", "soft within lines"],
)
def test_hyphens_are_hyphens(read: Read, data: bytes) -> None:
    text = text_of(read, data)
    assert text is not None
    assert "ACME-2026" in text
    assert "self-employed" in text
    assert not set(text) & set("\x02\ufffe\u00ad")


def test_a_character_without_unicode_is_no_hyphen(read: Read) -> None:
    text = text_of(read, mapped(b"BT /F 14 Tf 72 700 Td (12\x0530) Tj ET", (5, "\0")))
    assert text == "1230"


def test_characters_above_the_first_plane_are_whole(read: Read) -> None:
    data = mapped(b"BT /F 14 Tf 72 700 Td (\x05 and \x06) Tj ET", (5, "\U00020bb7"), (6, "🦙"))
    assert text_of(read, data) == "\U00020bb7 and 🦙"


# Form fields and text boxes.


def form(*fields: bytes, content: bytes = b"BT /F 12 Tf 72 700 Td (Application) Tj ET", extra: bytes = b"") -> bytes:
    """A page with widgets, one below the other."""
    objects = [
        b"<< /Type /Annot /Subtype /Widget /P 3 0 R /Rect [72 %d 300 %d] %s >>" % (640 - 30 * at, 660 - 30 * at, field)
        for at, field in enumerate(fields)
    ]
    kids = b" ".join(b"%d 0 R" % (6 + at) for at in range(len(fields)))
    return one_page(content, *objects, page=b"/Annots [%s]" % kids, catalog=HELVETICA % kids + extra)


ON_OR_OFF = b"/AP << /N << /%s << /Type /XObject >> /Off << /Type /XObject >> >> >>"


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ([b"/FT /Tx /T (total) /V (12.30)"], ["total: 12.30"]),
        ([b"/FT /Tx /T (f1_01[0]) /TU (Total amount) /V (12.30)"], ["Total amount: 12.30"]),
        ([b"/FT /Tx /T (note) /Ff 4096 /V (one\rtwo)"], ["note: one", "two"]),
        ([b"/FT /Tx /T (name) /V <feff004700fc006e>"], ["name: Gün"]),
        ([b"/FT /Tx /T (empty) /V ()", b"/FT /Tx /T (none)"], []),
        ([b"/FT /Tx /T (secret) /Ff 8192 /V (hunter2)"], []),
        ([b"/FT /Tx /T (hidden) /F 2 /V (12.30)"], []),
        ([b"/FT /Btn /T (agree) /V /Yes /AS /Yes " + ON_OR_OFF % b"Yes"], ["agree: Yes"]),
        ([b"/FT /Btn /T (agree) /V /Off /AS /Off " + ON_OR_OFF % b"Yes"], ["agree: Off"]),
        ([b"/FT /Btn /T (send) /Ff 65536 /MK << /CA (Send) >>"], []),
        ([b"/FT /Ch /T (land) /Ff 131072 /Opt [[(de) (Germany)] [(fr) (France)]] /V (fr)"], ["land: France"]),
        ([b"/FT /Ch /T (land) /Ff 393216 /Opt [(Germany)] /V (Elsewhere)"], ["land: Elsewhere"]),
        ([b"/FT /Ch /T (days) /Ff 2097152 /Opt [(Mo) (Tu) (We)] /V [(Mo) (We)] /I [0 2]"], ["days: Mo, We"]),
    ],
    ids=[
        *("text", "called otherwise", "lines", "UTF-16", "empty", "password", "hidden", "checked", "not checked"),
        *("button", "combo box", "own choice", "list"),
    ],
)
@pytest.mark.parametrize("pack", [lambda data: data, packed], ids=["plain", "packed"])
def test_values_of_fields_are_text(
    read: Read, fields: list[bytes], lines: list[str], pack: Callable[[bytes], bytes]
) -> None:
    values = [*([""] if lines else []), *lines]
    assert (text_of(read, pack(form(*fields))) or "").split("\n") == ["Application", *values]


@pytest.mark.parametrize(("chosen", "line"), [(0, "pay: card"), (1, "pay: cash"), (2, "pay: Off")])
def test_radio_buttons_are_one_value(read: Read, chosen: int, line: str) -> None:
    states = [b"card", b"cash", b"Off"]
    widgets = [
        b"<< /Type /Annot /Subtype /Widget /Parent 6 0 R /P 3 0 R /Rect [%d 600 %d 620] /AS /%s %s >>"
        % (72 + 40 * at, 92 + 40 * at, states[at] if at == chosen else b"Off", ON_OR_OFF % states[at])
        for at in range(2)
    ]
    field = b"<< /FT /Btn /Ff 49152 /T (pay) /V /%s /Kids [7 0 R 8 0 R] >>" % states[chosen]
    data = one_page(b"", field, *widgets, page=b"/Annots [7 0 R 8 0 R]", catalog=HELVETICA % b"6 0 R")
    assert text_of(read, data) == line


def test_text_boxes_are_text_and_comments_are_not(read: Read) -> None:
    """A comment opens at a click; a text box is a part of what is seen."""
    box = b"<< /Type /Annot /Subtype /FreeText /Rect [72 600 300 640] /DA (/F 12 Tf) /Contents (PAID 3 May) >>"
    comment = b"<< /Type /Annot /Subtype /Text /Rect [72 500 92 520] /Contents (ask Ann) >>"
    data = one_page(b"BT /F 12 Tf 72 700 Td (Invoice) Tj ET", box, comment, page=b"/Annots [6 0 R 7 0 R]")
    assert text_of(read, data) == "Invoice\n\nPAID 3 May"
