"""Rows are sized by what they take in memory, and large shards are cut into pieces that fit."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magbatch.rows import Segment, Shard
from magbatch.storage.sizes import PIECE_BYTES, SHARD_BYTES, Dictionaries, RowSizes, cut

MIB = 1 << 20


def sizes(path: Path, columns: list[str]) -> RowSizes:
    found = Dictionaries(lambda paths: pq.ParquetFile(path, read_dictionary=paths), (FileNotFoundError,))
    return RowSizes(found, pq.ParquetFile(path).metadata, columns)


def table(path: Path, values: list[str], rows: int, **options: object) -> Path:
    pq.write_table(pa.table({"x": values, "y": range(len(values))}), path, row_group_size=rows, **options)
    return path


def test_rows_are_found_in_their_row_groups(tmp_path: Path) -> None:
    found = sizes(table(tmp_path / "a.parquet", ["a"] * 10, 4), ["x"])
    assert found.ends == [4, 8, 10]
    assert list(found.groups(0, 10)) == [(0, 4), (1, 4), (2, 2)]
    assert list(found.groups(3, 2)) == [(0, 1), (1, 1)]
    assert list(found.groups(9, 1)) == [(2, 1)]


def test_a_repeated_value_counts_in_each_row_if_the_rows_may_not_fit(tmp_path: Path) -> None:
    found = sizes(table(tmp_path / "a.parquet", ["a" * 100_000] * 1000, 1000), ["x"])
    assert found.row_bytes(0, 1000, MIB) >= 100_000
    assert found.row_bytes(0, 1, MIB) < 1000, "one row fits, whatever its value"
    assert sizes(tmp_path / "a.parquet", ["y"]).row_bytes(0, 1000, MIB) < 100, "other columns are not read"


def test_common_beginnings_hide_the_length_of_values(tmp_path: Path) -> None:
    options = {"use_dictionary": False, "column_encoding": {"x": "DELTA_BYTE_ARRAY"}}
    path = table(tmp_path / "a.parquet", ["a" * 1000] * 10, 10, **options)
    assert sizes(path, ["x"]).has_prefixes(0)
    assert not sizes(path, ["y"]).has_prefixes(0)


def test_an_error_that_says_nothing_about_the_file_is_raised(tmp_path: Path) -> None:
    def gone(paths: list[str]) -> pq.ParquetFile:
        raise FileNotFoundError

    def damaged(paths: list[str]) -> pq.ParquetFile:
        raise OSError

    with pytest.raises(FileNotFoundError):
        Dictionaries(gone, (FileNotFoundError,))(0, "x")
    assert Dictionaries(damaged, (FileNotFoundError,))(0, "x") is None


@pytest.mark.parametrize(
    ("rows", "each", "pieces"),
    [
        (300, MIB, [128, 128, 44]),
        (256, MIB, [256]),
        (257, MIB, [128, 128, 1]),
        (3, SHARD_BYTES, [1, 1, 1]),
        (4, PIECE_BYTES, [1, 1, 1, 1]),
    ],
)
def test_a_large_shard_is_cut_into_pieces(rows: int, each: int, pieces: list[int]) -> None:
    shard = Shard(7, (Segment("a.parquet", "key", 0, "tag", 5, rows),))
    found = cut(shard, {("a.parquet", 5): [(rows, each)]})
    assert [piece.rows for piece in found] == pieces
    assert [piece.index for piece in found] == [7] * len(pieces)
    at = 5
    for piece in found:
        assert piece.segments[0].start == at
        at += piece.rows


def test_a_piece_may_span_segments() -> None:
    shard = Shard(0, (Segment("a", "a", 0, "tag", 0, 100), Segment("b", "b", 0, "tag", 9, 200)))
    found = cut(shard, {("a", 0): [(100, MIB)], ("b", 9): [(200, MIB)]})
    assert [[(part.path, part.start, part.rows) for part in piece.segments] for piece in found] == [
        [("a", 0, 100), ("b", 9, 28)],
        [("b", 37, 128)],
        [("b", 165, 44)],
    ]
