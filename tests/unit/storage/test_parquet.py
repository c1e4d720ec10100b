"""Planner and readers open Parquet alike: damage is noticed, and old timestamps keep their values."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magbatch.storage.input_file import open_input
from magbatch.storage.inputs import stat_input
from magbatch.storage.parquet import open_parquet


def opened(path: Path) -> pq.ParquetFile:
    found = stat_input(str(path))
    return open_parquet(open_input(found.name, found.size, found.tag))


def written(path: Path, values: list[Any], **options: Any) -> Path:
    pq.write_table(pa.table({"x": values}), path, **options)
    return path


def test_rows_come_as_they_were_written(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", ["ä", None, "b"])
    assert opened(path).read().to_pydict() == {"x": ["ä", None, "b"]}


def test_a_byte_that_was_changed_does_not_pass_as_text(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.parquet",
        ["a" * 100],
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
        write_statistics=False,
    )
    data = bytearray(path.read_bytes())
    data[data.index(b"a" * 100)] = ord("b")
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        opened(path).read()


def test_timestamps_after_2262_keep_their_year(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [datetime(9999, 1, 1)], use_deprecated_int96_timestamps=True)
    assert opened(path).read().to_pydict() == {"x": [datetime(9999, 1, 1)]}
