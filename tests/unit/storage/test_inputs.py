"""Input files are read alike on a disk and in object storage."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magbatch.errors import StorageError
from magbatch.storage import open_store
from magbatch.storage.input_file import open_input
from magbatch.storage.inputs import fetch_prefix, stat_input
from magbatch.storage.search import find_input


def test_pyarrow_reads_what_was_found(root: str) -> None:
    table = pa.table({"q": ["ä", None]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    open_store(root).write("deep/a b.parquet", sink.getvalue().to_pybytes())
    (item,) = find_input(root).files
    with open_input(item.name, item.size, item.tag) as file:
        assert pq.read_table(file).equals(table)


def test_the_state_of_a_file_follows_the_file(root: str) -> None:
    store = open_store(root)
    store.write("a", b"one")
    first = stat_input(f"{root}/a")
    assert (first.name, first.size) == (f"{root}/a", 3)
    store.write("a", b"three")
    second = stat_input(f"{root}/a")
    assert second.size == 5
    assert second.tag != first.tag
    store.delete("a")
    with pytest.raises(FileNotFoundError):
        stat_input(f"{root}/a")


def test_an_input_whose_bucket_is_away_is_not_gone(s3_endpoint: str) -> None:
    """Otherwise its rows would become dead letters."""
    with pytest.raises(StorageError, match=r"s3://no-such-bucket.*: there is no such bucket") as refused:
        stat_input("s3://no-such-bucket/a.parquet")
    assert refused.value.passing


def test_a_prefix_is_fetched_with_the_wanted_names_directly_below_it(s3: str, tmp_path: Path) -> None:
    store = open_store(f"{s3}/models/one")
    for name in ("params.json", "consolidated.safetensors", "extra.bin", "deeper/params.json"):
        store.write(name, name.encode())
    fetch_prefix(f"{s3}/models/one/", tmp_path, re.compile(r"params\.json|consolidated.*"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "params.json": b"params.json",
        "consolidated.safetensors": b"consolidated.safetensors",
    }
