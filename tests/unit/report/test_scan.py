import datetime
import json
import random
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pyarrow as pa
import pytest

from magbatch.report.scan import DuplicateIds, Slowest
from magbatch.schema import ERRORS, RESULTS

# Ids of users


def count(*tables: pa.Table, kind: str = ERRORS, column: str | None = "id") -> int:
    with DuplicateIds(column) as ids:
        for table in tables:
            ids.observe(kind, table)
        return ids.count()


def test_rows_beyond_the_first_of_an_id_are_counted() -> None:
    assert count() == 0
    assert count(pa.table({"id": ["a", "b", "c"]})) == 0
    assert count(pa.table({"id": ["a", "b", "a"]}), pa.table({"id": ["a", "c", "b"]})) == 3
    assert count(pa.table({"id": ["a", None, None, ""]})) == 0  # rows without an id do not repeat one


def test_a_row_with_many_samples_is_one_row() -> None:
    table = pa.table({"id": ["a", "a", "b", "b"], "sample": pa.array([0, 1, 0, 1], pa.int32())})
    assert count(table, kind=RESULTS) == 0
    assert count(table, table.slice(2), kind=RESULTS) == 1


def test_an_answered_row_and_a_failed_one_share_an_id() -> None:
    with DuplicateIds("id") as ids:
        ids.observe(RESULTS, pa.table({"id": ["a"], "sample": [0]}))
        ids.observe(ERRORS, pa.table({"id": ["a"]}))
        assert ids.count() == 1


def test_a_job_without_an_id_column_counts_nothing() -> None:
    assert count(pa.table({"other": ["a", "a"]}), column=None) == 0


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 1, 2]),
        pa.array([1.5, 1.5, 2.0]),
        pa.array([True, True, False]),
        pa.array(["a", "a", "b"], pa.large_string()),
        pa.array([b"a", b"a", b"\xff"]),
        pa.array([datetime.date(2026, 1, 1)] * 2 + [None]),
        pa.array([10**7, 10**7, 1], pa.int32()).cast(pa.date32()),  # past the year 9999, where Python has no date
        pa.array([5, 5, 6]).cast(pa.duration("us")),
        pa.array([{"a": 1}, {"a": 1}, {"a": 2}]),
        pa.array([["a"], ["a"], ["b"]]),
        pa.array([UUID(int=1), UUID(int=1), UUID(int=2)], pa.uuid()),
        pa.array([b"\xff\xfe", b"\xff\xfe", b"\xff\xff"], pa.binary(2)),
        pa.array([5, 5, 6], pa.timestamp("us", tz="Mars/Olympus")),
        pa.array([{"t": 10**12}, {"t": 10**12}, {"t": 1}], pa.struct([("t", pa.timestamp("s"))])),
        pa.Array.from_buffers(
            pa.string(), 3, [None, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xffb")]
        ),
    ],
    ids=lambda values: str(values.type),
)
def test_an_id_may_be_of_any_type(values: pa.Array) -> None:
    table = pa.table({"id": values})
    assert count(table) == 1
    slowest = Slowest("id")
    numbers = {"sample": [0] * 3, "latency_s": [3.0, 2.0, 1.0], "reasoning_tokens": [1] * 3, "answer_tokens": [1] * 3}
    slowest.observe(RESULTS, pa.table(numbers | {"row_id": ["x", "y", "z"], "id": values}))
    rows = json.loads(json.dumps(slowest.rows()))
    assert [row["row_id"] for row in rows] == ["x", "y", "z"]
    assert rows[0]["id"] == rows[1]["id"]


def test_memory_does_not_grow_with_ids_nor_do_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with DuplicateIds("id") as ids:
        ids.observe(ERRORS, pa.table({"id": [str(number % 9_000) for number in range(10_000)]}))
        assert ids.count() == 1_000
        assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) == 160_000
    assert list(tmp_path.iterdir()) == []


def test_the_slowest_rows_of_all_objects_are_kept() -> None:
    rng = random.Random(3)
    latencies = [rng.random() for _ in range(200)]
    slowest, rows = Slowest("id", 5), list[tuple[float, str]]()
    for number, begin in enumerate(range(0, 200, 10)):
        some = latencies[begin : begin + 10]
        names = [f"{number}-{slot}" for slot in range(10)]
        rows += zip(some, names, strict=True)
        table = pa.table(
            {
                "row_id": [name for name in names for _ in range(2)],
                "sample": [0, 1] * 10,
                "id": pa.array([None if name == rows[0][1] else 7 for name in names for _ in range(2)], pa.int64()),
                "latency_s": [latency for latency in some for _ in range(2)],
                "reasoning_tokens": [3] * 20,
                "answer_tokens": [4] * 20,
            }
        )
        slowest.observe(RESULTS, table)
        slowest.observe(ERRORS, pa.table({"row_id": ["x"]}))
        slowest.observe(RESULTS, table.slice(0, 0))
    expected = sorted(rows, reverse=True)[:5]
    assert [(row["latency_s"], row["row_id"]) for row in slowest.rows()] == expected
    assert [row["id"] for row in slowest.rows()] == [None if name == rows[0][1] else "7" for _, name in expected]
    assert slowest.rows()[0].keys() == {"row_id", "id", "latency_s", "reasoning_tokens", "answer_tokens"}


FULL = """
import os, resource, sys, tempfile
import pyarrow as pa
from magbatch.errors import StorageError
from magbatch.report.scan import DuplicateIds
tempfile.tempdir = sys.argv[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # the kernel refuses to write more, as a full disk does
table = pa.table({"id": [f"id-{n}" for n in range(100_000)], "sample": pa.array([0] * 100_000, pa.int32())})
try:
    with DuplicateIds("id") as ids:
        ids.observe("results", table)
        ids.count()
except StorageError as error:
    print(error.exit_code, error)
print(os.listdir(sys.argv[1]))
"""


def test_a_full_disk_of_temporary_files_is_an_error_of_storage_and_leaves_no_file(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"2 TMPDIR: temporary files in {tmp_path}: File too large; make room there (16 bytes a row are needed), or set "
        "TMPDIR to another folder\n[]\n"
    )
