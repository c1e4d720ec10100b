"""Receipts as PDF and TIFF files hold the very pixels of their pictures."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pypdfium2 as pdfium
from PIL import Image

from magbatch.tiny.documents import as_pdf, as_tiff, write_parquet
from magbatch.tiny.receipts import draw_receipt


def test_a_document_shows_the_pixels_of_its_receipt() -> None:
    image = draw_receipt(random.Random(1)).image
    page = pdfium.PdfDocument(as_pdf(image))[0]
    assert page.get_size() == image.size
    assert (np.asarray(page.render(scale=1).to_pil().convert("RGB")) == np.asarray(image)).all()
    assert (np.asarray(Image.open(io.BytesIO(as_tiff(image)))) == np.asarray(image)).all()


def test_a_file_has_pdf_and_tiff_in_turn_and_repeats_with_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_parquet(tmp_path / name, 4, seed)
    rows, again, other = (pq.read_table(tmp_path / name).to_pylist() for name in "abc")
    assert [row["file"].rpartition(".")[2] for row in rows] == ["pdf", "tiff", "pdf", "tiff"]
    assert [row["document"][:2] for row in rows] == [b"%P", b"II", b"%P", b"II"]
    assert [row["expected"] for row in again] == [row["expected"] for row in rows]
    assert [row["expected"] for row in other] != [row["expected"] for row in rows]
    assert all(2 <= json.loads(row["expected"])["items"] <= 6 for row in rows)
