"""Bounds of a benchmark: shares and rates are computed from recorded steps and from the files of a job."""

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magbatch.bench.bounds import DOCUMENT_PAGES, draw_document, occupancy_of, steady_rate
from magbatch.errors import BenchError


def test_a_jobs_speed_is_of_its_rows_not_of_a_file_without_any(tmp_path: Path) -> None:
    """An object without rows shows the columns, and is written after all other objects."""
    for kind, number, rows in (("results", 0, 10), ("results", 1, 40), ("results", 2, 50), ("errors", 0, 0)):
        (tmp_path / kind).mkdir(exist_ok=True)
        pq.write_table(pa.table({"id": list(range(rows))}), tmp_path / kind / f"{number}.parquet")
        time.sleep(0.2 if rows else 0)
    times = [(tmp_path / "results" / f"{number}.parquet").stat().st_ctime for number in (0, 2)]
    assert steady_rate(tmp_path) == pytest.approx(90 / (times[1] - times[0]))


def test_occupancy_is_of_what_could_be_in_use_until_the_input_is_exhausted() -> None:
    # Two seconds with all 4 slots, one with 2 of 4; then the last 3 of 10 rows are in, and free slots no longer count.
    steps = [(0.0, 4, 0), (2.0, 2, 3), (3.0, 3, 7), (5.0, 1, 9), (100.0, 0, 10)]
    assert occupancy_of(steps, slots=4, rows=10) == pytest.approx((2 * 4 + 1 * 2 + 2 * 3) / (2 * 4 + 1 * 4 + 2 * 3))
    with pytest.raises(BenchError, match="took no step"):
        occupancy_of([], slots=4, rows=10)


def test_a_job_with_too_few_commits_has_no_speed(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    pq.write_table(pa.table({"id": [1]}), tmp_path / "results" / "0.parquet")
    with pytest.raises(BenchError, match="give more --rows"):
        steady_rate(tmp_path)


def test_a_drawn_document_has_its_pages_and_is_the_same_again() -> None:
    import pypdfium2 as pdfium

    data = draw_document("0/1")
    document = pdfium.PdfDocument(data)
    texts = [document[page].get_textpage().get_text_range() for page in range(len(document))]
    document.close()
    assert len(texts) == len(set(texts)) == DOCUMENT_PAGES
