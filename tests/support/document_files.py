"""Files to try the reading of documents with: made here, byte by byte, or by libraries that read nothing."""

import io
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as Pillow

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def pdf_of(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """A PDF of numbered objects; the first one is its catalogue."""
    data, offsets = bytearray(b"%PDF-1.7\n"), []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start)
    return bytes(data)


def stream(content: bytes, entries: bytes = b"") -> bytes:
    """A stream object."""
    return b"<< /Length %d %s >>\nstream\n" % (len(content), entries) + content + b"\nendstream"


def pages_pdf(contents: Sequence[bytes], box: tuple[float, float] = (595, 842), extra: bytes = b"") -> bytes:
    """A PDF with a page for each content stream, Helvetica as /F."""
    count = len(contents)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * index) for index in range(count))
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count %d /Kids [%s] >>" % (count, kids)]
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for index, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %f %f] /Resources << /Font << /F 3 0 R >> >> "
            b"/Contents %d 0 R %s >>" % (*box, 5 + 2 * index, extra)
        )
        objects.append(stream(content))
    return pdf_of(objects)


def one_page(
    content: bytes,
    *objects: bytes,
    page: bytes = b"",
    catalog: bytes = b"",
    resources: bytes = b"",
    box: tuple[float, float] = (612, 792),
) -> bytes:
    """A PDF with one page, Helvetica as /F; further objects have the numbers from 6 on."""
    return pdf_of(
        [
            b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
            b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %f %f] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> %s "
            b">> %s >>" % (*box, resources, page),
            stream(content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
            *objects,
        ]
    )


def image_object(width: int, height: int, entries: bytes = b"", value: int = 0) -> bytes:
    """A grey image of one value."""
    entries += b" /Type /XObject /Subtype /Image /Width %d /Height %d /BitsPerComponent 8" % (width, height)
    data = zlib.compress(bytes([value]) * (width * height))
    return stream(data, entries + b" /ColorSpace /DeviceGray /Filter /FlateDecode")


def packed(data: bytes) -> bytes:
    """A PDF whose objects stand in object streams, as most that are made today."""
    import pypdf

    sink = io.BytesIO()
    pypdf.PdfWriter(clone_from=io.BytesIO(data)).write(sink)
    numbered = pypdf.PdfReader(sink)
    bodies, streams = {}, {}
    for number in range(1, numbered.trailer["/Size"]):
        found = numbered.get_object(number)
        body = io.BytesIO()
        found.write_to_stream(body)
        (streams if isinstance(found, pypdf.generic.StreamObject) else bodies)[number] = body.getvalue()
    return _with_object_stream(bodies, streams, numbered.trailer.raw_get("/Root").idnum)


def _with_object_stream(bodies: dict[int, bytes], streams: dict[int, bytes], root: int) -> bytes:
    holder, table = max([*bodies, *streams]) + 1, max([*bodies, *streams]) + 2
    header, text, places = b"", b"", {}
    for index, (number, body) in enumerate(bodies.items()):
        header += b"%d %d " % (number, len(text))
        text += body + b"\n"
        places[number] = (2, holder, index)
    entries = b"/Type /ObjStm /N %d /First %d /Filter /FlateDecode" % (len(bodies), len(header))
    data = bytearray(b"%PDF-1.7\n")
    for number, body in [*streams.items(), (holder, stream(zlib.compress(header + text), entries))]:
        places[number] = (1, len(data), 0)
        data += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    places[table] = (1, len(data), 0)
    rows = [(0, 0, 65535), *(places[number] for number in range(1, table + 1))]
    lines = b"".join(bytes([kind]) + one.to_bytes(4, "big") + two.to_bytes(2, "big") for kind, one, two in rows)
    entries = b"/Type /XRef /W [1 4 2] /Size %d /Root %d 0 R" % (table + 1, root)
    start = len(data)
    data += b"%d 0 obj\n" % table + stream(lines, entries) + b"\nendobj\nstartxref\n%d\n%%%%EOF\n" % start
    return bytes(data)


def words(*lines: str, size: int = 24) -> bytes:
    """A page's content that writes lines."""
    shown = b"".join(b"(%s) Tj 0 -%d Td " % (line.encode("latin-1"), size + 6) for line in lines)
    return b"BT /F %d Tf 72 760 Td %sET" % (size, shown)


def text_pdf(*pages: str, **options: Any) -> bytes:
    """A born-digital PDF of some pages."""
    return pages_pdf([words(page) for page in pages], **options)


def scan_pdf(*images: Pillow.Image, points_per_pixel: float = 1.0, text: str = "") -> bytes:
    """A PDF whose pages are images, each over its whole page, without loss; with invisible text, as OCR leaves it."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for image in images:
        first = len(objects) + 1
        width, height = image.width * points_per_pixel, image.height * points_per_pixel
        kids.append(b"%d 0 R" % first)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %f %f] /Contents %d 0 R /Resources << /Font << /F 3 0 R >> "
            b"/XObject << /I %d 0 R >> >> >>" % (width, height, first + 1, first + 2)
        )
        hidden = b" BT 3 Tr /F 8 Tf 5 5 Td (%s) Tj ET" % text.encode("latin-1") if text else b""
        objects.append(stream(b"q %f 0 0 %f 0 0 cm /I Do Q" % (width, height) + hidden))
        entries = b"/Type /XObject /Subtype /Image /Width %d /Height %d /BitsPerComponent 8 " % image.size
        entries += b"/ColorSpace /DeviceRGB /Filter /FlateDecode"
        objects.append(stream(zlib.compress(image.convert("RGB").tobytes()), entries))
    objects[1] = b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(kids), b" ".join(kids))
    return pdf_of(objects)


def encrypted_pdf(user: str, owner: str = "owner") -> bytes:
    """A PDF that needs a password to be opened, or, with an empty one, only to be changed."""
    import pypdf

    writer = pypdf.PdfWriter(io.BytesIO(text_pdf("Total: 12.30")))
    writer.encrypt(user, owner, algorithm="RC4-128")
    sink = io.BytesIO()
    writer.write(sink)
    return sink.getvalue()


def encoded(image: Pillow.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def tiff(*images: Pillow.Image, **options: Any) -> bytes:
    """A TIFF with a page for each image."""
    return encoded(images[0], "TIFF", save_all=True, append_images=images[1:], **options)


def two_halves(width: int = 56, height: int = 28) -> Pillow.Image:
    """Red on the left, blue on the right."""
    image = Pillow.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def noise(width: int, height: int, seed: int = 1) -> Pillow.Image:
    """No two neighbours alike: resampling shows."""
    return Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
