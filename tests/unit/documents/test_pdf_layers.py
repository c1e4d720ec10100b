"""Text holds the layers that the picture shows, and no others."""

from collections.abc import Callable

import numpy as np
import pytest
from support.document_files import one_page, packed, stream

from magbatch.rows import Page

Read = Callable[..., tuple[int, list[Page]]]
OPEN = b"BT /F 24 Tf 72 700 Td (open) Tj ET "
SECRET = b"BT /F 24 Tf 72 500 Td (secret) Tj ET "
WITHIN = OPEN + b"/OC /L BDC " + SECRET + b"EMC"
PLAIN_GROUP = b"<< /Type /OCG /Name (layer) >>"


def layered(
    membership: bytes = b"6 0 R",
    config: bytes = b"/OFF [6 0 R]",
    group: bytes = PLAIN_GROUP,
    more: bytes = b"",
    content: bytes = WITHIN,
) -> bytes:
    """A page whose content names /L; groups are 6 (by default switched off) and 7 (switched on)."""
    return one_page(
        content,
        group,
        b"<< /Type /OCG /Name (layer) >>",
        stream(
            SECRET, b"/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /Font << /F 5 0 R >> >> " + more
        ),
        stream(
            b"/OC /L BDC " + SECRET + b"EMC",
            b"/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /Font << /F 5 0 R >> "
            b"/Properties << /L %s >> >>" % membership,
        ),
        catalog=b"/OCProperties << /OCGs [6 0 R 7 0 R] /D << %s >> >>" % config,
        resources=b"/Properties << /L %s >> /XObject << /X 8 0 R /Y 9 0 R >>" % membership,
    )


USAGE = b"<< /Type /OCG /Name (x) /Usage << /View << /ViewState /%s >> /Print << /PrintState /%s >> >> >>"
BY_USAGE = b"/AS [<< /Event /View /Category [/View] /OCGs [6 0 R] >>]"
OCMD = b"<< /Type /OCMD /OCGs [6 0 R 7 0 R] /P /%s >>"
EXPRESSION = b"<< /Type /OCMD /VE [%s] >>"
HIDDEN = {
    "group": layered(),
    "base state": layered(config=b"/BaseState /OFF /ON [7 0 R]"),
    "all on": layered(OCMD % b"AllOn"),
    "any off but not": layered(EXPRESSION % b"/Not [/Not 6 0 R]"),
    "not on": layered(EXPRESSION % b"/Not 7 0 R"),
    "and": layered(EXPRESSION % b"/And 7 0 R 6 0 R"),
    "or": layered(EXPRESSION % b"/Or 6 0 R [/Not 7 0 R]"),
    "all off": layered(OCMD % b"AllOff"),
    "not to be viewed": layered(config=BY_USAGE, group=USAGE % (b"OFF", b"ON")),
    "form": layered(more=b"/OC 6 0 R", content=OPEN + b"/X Do"),
    "within a form": layered(content=OPEN + b"/Y Do"),
    "form within": layered(content=OPEN + b"/OC /L BDC /X Do EMC"),
    "nested marks": layered(content=OPEN + b"/OC /L BDC /P BMC " + SECRET + b"EMC EMC"),
}
SHOWN = {
    "group": layered(b"7 0 R"),
    "base state": layered(b"7 0 R", config=b"/BaseState /OFF /ON [7 0 R]"),
    "any on": layered(OCMD % b"AnyOn"),
    "any off": layered(OCMD % b"AnyOff"),
    "not off": layered(EXPRESSION % b"/Not 6 0 R"),
    "or": layered(EXPRESSION % b"/Or 6 0 R 7 0 R"),
    "no groups": layered(b"<< /Type /OCMD >>"),
    "to be viewed": layered(config=BY_USAGE + b" /OFF [6 0 R]", group=USAGE % (b"ON", b"OFF")),
    "print alone": layered(
        config=b"/AS [<< /Event /Print /Category [/Print] /OCGs [6 0 R] >>]", group=USAGE % (b"ON", b"OFF")
    ),
    "usage that nothing applies": layered(config=b"", group=USAGE % (b"OFF", b"OFF")),
    "another configuration": layered(b"7 0 R", b">> /Configs [<< /Intent /View /OFF [7 0 R] >>] /X <<"),
    "another intent": layered(group=b"<< /Type /OCG /Name (x) /Intent /Design >>"),
    "form": layered(more=b"/OC 7 0 R", content=OPEN + b"/X Do"),
    "no layers": one_page(OPEN + SECRET),
}


@pytest.mark.parametrize("pack", [lambda data: data, packed], ids=["plain", "packed"])
@pytest.mark.parametrize(
    ("data", "text"),
    [*((data, "open") for data in HIDDEN.values()), *((data, "open\nsecret") for data in SHOWN.values())],
    ids=[*(f"hidden: {name}" for name in HIDDEN), *(f"shown: {name}" for name in SHOWN)],
)
def test_text_and_picture_show_the_same_layers(
    read: Read, data: bytes, text: str, pack: Callable[[bytes], bytes]
) -> None:
    (page,) = read(pack(data))[1]
    assert page.text == text
    assert page.image is not None
    ink = np.frombuffer(page.image.rgb, np.uint8).reshape(page.image.height, -1, 3)[500:620].min() < 128
    assert ink == ("secret" in text)
    assert read(pack(data), grid=None)[1][0].text == text


def test_fields_and_text_boxes_of_hidden_layers_are_no_text(read: Read) -> None:
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (total) /V (12.30) /Rect [72 600 300 640] /P 3 0 R /OC 6 0 R >>"
    )
    box = b"<< /Type /Annot /Subtype /FreeText /Rect [72 500 300 540] /DA (/F 12 Tf) /Contents (DRAFT) /OC 6 0 R >>"
    data = one_page(
        OPEN,
        PLAIN_GROUP,
        field,
        box,
        page=b"/Annots [7 0 R 8 0 R]",
        catalog=b"/OCProperties << /OCGs [6 0 R] /D << /OFF [6 0 R] >> >> /AcroForm << /Fields [7 0 R] >>",
    )
    assert read(data, grid=None)[1][0].text == "open"
