from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from magbatch.storage.partitions import key_type, path_keys


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/in/x.parquet", {}),
        ("/in/date=2026-11-24/lang=de/x.parquet", {"date": "2026-11-24", "lang": "de"}),
        ("s3://bucket/a=1/in/x.parquet", {"a": "1"}),
        ("/in/x=1.parquet", {}),
        ("/in/a=b=c/x.parquet", {"a": "b=c"}),
        ("/in/=b/x.parquet", {}),
        ("/in/a=/x.parquet", {"a": ""}),
        ("/in/a=1/a=2/x.parquet", {"a": "2"}),
        ("/in/a%20b=c%2Fd%3D/x.parquet", {"a b": "c/d="}),
        ("/in/a=100%/b=%FF/x.parquet", {"a": "100%", "b": "%FF"}),
        ("/in/a=__HIVE_DEFAULT_PARTITION__/x.parquet", {"a": None}),
    ],
)
def test_keys_stand_in_the_folders_of_a_path(path: str, keys: dict[str, str | None]) -> None:
    assert path_keys(path) == keys


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", "007"], pa.int64()),
        (["1", None], pa.int64()),
        (["1", "x"], pa.string()),
        (["1.5"], pa.string()),
        (["9" * 19], pa.string()),
        (["1 "], pa.string()),
        ([""], pa.string()),
        (["٣"], pa.string()),
        ([None], pa.null()),
    ],
)
def test_a_key_is_a_number_if_all_its_values_are(values: list[str | None], kind: pa.DataType) -> None:
    assert key_type(values) == kind


def test_keys_are_those_of_other_readers(tmp_path: Path) -> None:
    """Files that pyarrow and DuckDB write have the same partition values here as there."""
    table = pa.table({"n": [1, 2, 3], "text": ["a b/c=d", None, "é%"], "row": ["x", "y", "z"]})
    by = {"partitioning": ["n", "text"], "partitioning_flavor": "hive"}
    ds.write_dataset(table, tmp_path / "arrow", format="parquet", **by)
    pq.write_table(table, tmp_path / "t.parquet")
    duckdb.sql(f"copy (from '{tmp_path}/t.parquet') to '{tmp_path}/duck' (format parquet, partition_by (n, text))")
    for folder in ("arrow", "duck"):
        files = sorted((tmp_path / folder).rglob("*.parquet"))
        keys = [path_keys(str(file)) for file in files]
        assert [one["text"] for one in keys] == table.column("text").to_pylist()
        kind = key_type(one["n"] for one in keys)
        read = ds.dataset(tmp_path / folder, partitioning="hive").to_table().sort_by("n")
        assert [int(str(one["n"])) for one in keys] == read.column("n").to_pylist()
        assert [pa.types.is_integer(one) for one in (kind, read.column("n").type)] == [True, True]
        assert read.column("text").to_pylist() == table.column("text").to_pylist()
