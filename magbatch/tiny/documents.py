"""Receipts as documents for jobs that read documents: each a lossless PDF or TIFF with one scanned page.

`python -m magbatch.tiny.documents --out FILE.parquet --n 60` writes a job's input file.
"""

import argparse
import random
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pypdfium2 as pdfium
from PIL import Image

from magbatch.tiny.receipts import draw_receipt, price_text


def as_pdf(image: Image.Image) -> bytes:
    """Return a PDF with one page, which the image fills at one point per pixel."""
    document = pdfium.PdfDocument.new()
    page = document.new_page(*image.size)
    picture = pdfium.PdfImage.new(document)
    picture.set_bitmap(pdfium.PdfBitmap.from_pil(image))
    picture.set_matrix(pdfium.PdfMatrix().scale(*image.size))
    page.insert_obj(picture)
    page.gen_content()
    sink = BytesIO()
    document.save(sink)
    return sink.getvalue()


def as_tiff(image: Image.Image) -> bytes:
    """Return a TIFF with one page."""
    sink = BytesIO()
    image.save(sink, "TIFF", compression="tiff_lzw")
    return sink.getvalue()


def write_parquet(path: Path, n: int, seed: int) -> None:
    """Write receipts, as PDF and TIFF in turn, as a job's input file.

    The columns are id, file (name), document (bytes) and expected (the answer as JSON).

    Args:
        path: Parquet file to write.
        n: Number of receipts.
        seed: Seed of the receipts; the training never draws from these.
    """
    rows = []
    for index in range(n):
        receipt = draw_receipt(random.Random(f"heldout/documents/{seed}/{index}"))
        total = price_text(sum(cents for _, cents in receipt.items))
        kind, make = (("pdf", as_pdf), ("tiff", as_tiff))[index % 2]
        rows.append(
            {
                "id": f"receipt-{index:04d}",
                "file": f"receipt-{index:04d}.{kind}",
                "document": make(receipt.image),
                "expected": f'{{"total":{total},"items":{len(receipt.items)}}}',
            }
        )
    columns: dict[str, pa.DataType] = {
        "id": pa.string(),
        "file": pa.string(),
        "document": pa.binary(),
        "expected": pa.string(),
    }
    schema = pa.schema(columns)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")


def main() -> None:
    """Run the command line of `python -m magbatch.tiny.documents`."""
    parser = argparse.ArgumentParser(description="Write receipts as PDF and TIFF.")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--n", type=int, default=60, help="number of receipts")
    parser.add_argument("--seed", type=int, default=0, help="seed of the receipts")
    arguments = parser.parse_args()
    write_parquet(arguments.out, arguments.n, arguments.seed)
    print(f"{arguments.n} receipts written to {arguments.out}")


if __name__ == "__main__":
    main()
