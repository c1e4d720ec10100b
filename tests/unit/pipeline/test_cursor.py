"""A cursor reads forward, keeps what it has decoded, and seeks only if it must."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magbatch.errors import RowError
from magbatch.pipeline.cursor import Cursor
from magbatch.rows import Segment
from magbatch.storage.inputs import stat_input


@pytest.fixture
def open_rows(tmp_path: Path) -> Callable[..., Cursor]:
    """A cursor over numbers 0 to 199, in row groups of some size."""

    def open_(group_rows: int = 200) -> Cursor:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"n": range(200)}), path, row_group_size=group_rows)
        file = stat_input(str(path))
        return Cursor(Segment(str(path), "k", file.size, file.tag, 0, 200), ["n"])

    return open_


def numbers(batches: list[pa.RecordBatch]) -> list[int]:
    return [value for batch in batches for value in batch.column("n").to_pylist()]


class Decoded:
    """Counts the rows that a cursor decodes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rows = 0
        real = pq.ParquetFile.iter_batches

        def count(file: pq.ParquetFile, *args: Any, **options: Any) -> Any:
            for batch in real(file, *args, **options):
                self.rows += batch.num_rows
                yield batch

        patch.setattr(pq.ParquetFile, "iter_batches", count)


def test_the_example_of_take(open_rows: Callable[..., Cursor], monkeypatch: pytest.MonkeyPatch) -> None:
    cursor, decoded = open_rows(), Decoded(monkeypatch)
    assert (numbers(cursor.take(10, 20)), decoded.rows) == ([*range(10, 30)], 64)
    assert (numbers(cursor.take(60, 10)), decoded.rows) == ([*range(60, 70)], 128)
    assert (numbers(cursor.take(0, 5)), decoded.rows) == ([*range(5)], 192)


def test_a_later_row_group_is_reached_without_decoding_those_before(
    open_rows: Callable[..., Cursor], monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor, decoded = open_rows(group_rows=50), Decoded(monkeypatch)
    assert (numbers(cursor.take(160, 3)), decoded.rows) == ([160, 161, 162], 50)
    assert cursor.group_end(160) == 200
    assert cursor.group_end(49) == 50


def test_rows_may_lie_in_several_row_groups(open_rows: Callable[..., Cursor]) -> None:
    assert numbers(open_rows(group_rows=7).take(5, 100)) == [*range(5, 105)]


def test_a_file_that_changed_after_it_was_opened_gives_no_rows(open_rows: Callable[..., Cursor]) -> None:
    cursor = open_rows()
    Path(cursor.path).write_bytes(Path(cursor.path).read_bytes() + b" ")
    with pytest.raises(RowError):
        cursor.take(0, 5)
