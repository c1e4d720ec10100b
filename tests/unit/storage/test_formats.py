"""Files that are not Parquet: each command that a message shows is run here."""

import gzip
import io
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest

from magbatch.storage.formats import CSV, JSON, Foreign, by_bytes, by_name, command, counted, suffix_of, target_of

TABLE = pa.table({"id": ["a", "b"], "question": ["What is 1+1?", 'it\'s $HOME; "x"']})


def csv(delimiter: str = ",") -> bytes:
    sink = io.BytesIO()
    pyarrow.csv.write_csv(TABLE, sink, pyarrow.csv.WriteOptions(delimiter=delimiter))
    return sink.getvalue()


def feather() -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(TABLE, sink)
    return sink.getvalue()


def orc() -> bytes:
    sink = io.BytesIO()
    pyarrow.orc.write_table(TABLE, sink)
    return sink.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()).encode()
FILES: dict[str, Callable[[], bytes]] = {
    "x.csv": csv,
    "x.CSV": csv,
    "x.tsv": lambda: csv("\t"),
    "x.txt": lambda: csv(";"),
    "x.csv.gz": lambda: gzip.compress(csv()),
    "x.jsonl": lambda: LINES,
    "x.jsonl.zst": lambda: pa.compress(LINES, "zstd", asbytes=True),
    "x.json": lambda: json.dumps(TABLE.to_pylist(), indent=1).encode(),
    "x.feather": feather,
    "x.arrow": feather,
    "x.orc": orc,
    "csv.parquet": csv,
    "json.parquet": lambda: LINES,
    "csv.gz.parquet": lambda: gzip.compress(csv()),
    "feather.parquet": feather,
    'it\'s a "$x".csv': csv,
    "a'quoted' one.csv": csv,
    "back\\slash.csv": csv,
}


def carry_out(line: str) -> None:
    """Run a command that a message shows, in this environment."""
    words = shlex.split(line)
    assert words[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *words[1:]], check=True, timeout=60)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_known_by_its_bytes_and_its_command_makes_parquet_of_it(tmp_path: Path, name: str) -> None:
    data, path, target = FILES[name](), tmp_path / name, tmp_path / "made.parquet"
    path.write_bytes(data)
    found = by_bytes(str(path), data[:4096])
    assert found is not None
    assert found.kind is not None
    carry_out(command(found.kind, [str(path)], str(target), found.packing))
    assert pq.read_table(target).to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.feather"])
def test_many_files_become_one(tmp_path: Path, name: str) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(FILES[name]())
    kind, target = by_name(name), tmp_path / "made.parquet"
    assert kind is not None
    carry_out(command(kind, [f"{tmp_path}/**/*{suffix_of(name)}"], str(target)))
    assert pq.read_table(target).select(["id"]).num_rows == 4


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"PAR1" + bytes(100), "a Parquet file that is cut off: its end is missing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS; fetch the file itself: git lfs pull"),
        (
            gzip.compress(b"PAR1" + bytes(100)),
            "a Parquet file within gzip; unpack it and remove this file: "
            "gunzip -c < /in/x.parquet > /in/x.made.parquet",
        ),
        (gzip.compress(bytes(100)), "a gzip file"),
        (b"Obj\x01\x04\x14avro.codec", "Avro"),
        (b"\xef\xbb\xbfid;question\r\n1;x", "CSV"),
        (b"caf\xe9;question\r\n1;x", "CSV"),
        (b'\n  {"id": 1}', "JSON"),
    ],
)  # fmt: skip
def test_what_a_file_is(data: bytes, what: str) -> None:
    found = by_bytes("/in/x.parquet", data)
    assert found is not None
    assert found.what == what


@pytest.mark.parametrize(
    "data", [b"", b"   \n", b"one word", bytes(50), b"\x89PNG\r\n\x1a\n", b"PK\x03\x04" + bytes(40)]
)
def test_bytes_that_tell_nothing(data: bytes) -> None:
    assert by_bytes("/in/x.parquet", data) is None


def test_names_decide_where_bytes_fit_several() -> None:
    assert by_bytes("x.xlsx", b"PK\x03\x04") == Foreign("Excel", by_name("x.xlsx"))
    assert by_bytes("x.csv", b"id\n1\n2\n") == Foreign("CSV", CSV)
    assert (by_name("x.NDJSON.gz"), by_name("x.bin"), by_name("x.parquet")) == (JSON, None, None)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/in/x.csv.gz", "/in/x.parquet"),
        ("/in/", "/in.parquet"),
        ("in/2026/*.csv", "in/2026.parquet"),
        ("s3://b/in/*/y-*.csv", "s3://b/in.parquet"),
        ("/in/x.parquet", "/in/x.made.parquet"),
        ("*.csv", "rows.parquet"),
        ("/in/v1.2", "/in/v1.2.parquet"),
    ],
)
def test_what_is_made_lies_beside_what_it_is_made_of(path: str, target: str) -> None:
    assert target_of(path) == target


def test_files_are_counted_by_their_suffixes() -> None:
    names = ["a.csv", "b/a.csv", "x.y.json.gz", "README", "x.PARQUET"]
    assert counted(Counter(map(suffix_of, names))) == "2 .csv, 1 without suffix, 1 .PARQUET, 1 .json.gz"
