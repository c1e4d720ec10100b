"""The least that a job without an engine can cost: a plain loop over the same libraries.

`python -m magbatch.bench.bare_arm text|documents CHECKPOINT OUT FILE…` reads Parquet, tokenizes or renders, and writes
Parquet. It prints the time at which the loop started, with every library loaded, and the time at which it ended.
"""

import json
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 64
ECHO_TOKENS = 48  # tokens decoded for each row, as many as in an answer of the scripted engine


def text(checkpoint: Path, output: Path, files: list[str]) -> int:
    """Loop over pyarrow and the tokenizer; returns the number of rows."""
    from mistral_common.protocol.instruct.messages import UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    from magbatch.model.tokenizer import Tokenizer

    tokenizer = Tokenizer(checkpoint)
    tokenizer.encode(ChatCompletionRequest(messages=[UserMessage(content="warm")]))
    return _loop(
        output,
        files,
        lambda row: tokenizer.decode(
            tokenizer.encode(ChatCompletionRequest(messages=[UserMessage(content=row["question"])]))[-ECHO_TOKENS:]
        ),
    )


def documents(checkpoint: Path, output: Path, files: list[str]) -> int:
    """Loop over pyarrow, pypdfium2 and Pillow, at the model's page size; returns the number of pages."""
    import pypdfium2 as pdfium

    from magbatch.documents.images import ImageGrid
    from magbatch.documents.pdf import MAX_DPI, POINTS_PER_INCH
    from magbatch.model.facts import facts

    model = facts(checkpoint)
    if model.image_size is None:
        raise SystemExit("the model has no vision encoder, so it sees no pages; choose another --model")
    grid = ImageGrid(model.image_size, model.image_cell)
    pages = 0

    def render(row: dict[str, bytes]) -> str:
        nonlocal pages
        document = pdfium.PdfDocument(row["document"])
        sizes = 0
        for page in document:
            scale = min(MAX_DPI / POINTS_PER_INCH, grid.longest_side / max(page.get_size()))
            image = page.render(scale=scale).to_pil().convert("RGB")
            size = grid.fit(*image.size)
            if image.size != size:
                image = image.resize(size)
            sizes += len(image.tobytes())
            pages += 1
        document.close()
        return str(sizes)

    _loop(output, files, render)
    return pages


def _loop(output: Path, files: list[str], answer: object) -> int:
    rows = 0
    print(json.dumps({"began": time.time()}), flush=True)
    for number, file in enumerate(files):
        for index, batch in enumerate(pq.ParquetFile(file).iter_batches(BATCH_ROWS)):
            records = batch.to_pylist()
            found = {"id": [row["id"] for row in records], "answer": [answer(row) for row in records]}  # type: ignore[operator]
            pq.write_table(pa.table(found), output / f"{number:03d}-{index:05d}.parquet", compression="zstd")
            rows += len(records)
    return rows


def main() -> None:
    """Run the loop that the command line names."""
    kind, checkpoint, output, *files = sys.argv[1:]
    loops = {"text": text, "documents": documents}
    done = loops[kind](Path(checkpoint), Path(output), files)
    print(json.dumps({"ended": time.time(), "done": done}), flush=True)


if __name__ == "__main__":
    main()
