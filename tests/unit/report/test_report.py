import datetime
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from support.small_job import SmallJob

from magbatch.replica.board import Slot
from magbatch.replica.losses import Loss
from magbatch.report.progress import JobUsage, Point
from magbatch.report.report import DuplicateIds, ReplicaUse, Report, Run, Slowest, one_line, settings
from magbatch.schema import ERRORS, RESULTS
from magbatch.totals import Totals
from magbatch.versions import versions

TOTALS = Totals(
    answered=1_234_000,
    failed=567,
    records=2_468_000,
    prompt_tokens=9_000_000,
    cached_tokens=1_000,
    reasoning_tokens=8_000_000,
    answer_tokens=7_000,
    graded=3_000,
    right=2_981,
    by_code={"prompt_too_long": 560, "missing_value": 7},
    by_status={"truncated": 4, "complete": 2_467_996},
)


def report(**fields: Any) -> Report:
    run = Run(seconds=100.4, serving_s=50.0, rows=1_000, tokens=400_000, engine_deaths=2)
    data: dict[str, Any] = {
        "job": "november", "output": "s3://acme/out", "planned": 1_234_567, "totals": TOTALS, "duplicate_ids": None,
        "run": run, "settings": {"model": {"engine_args": {"max_num_seqs": 8}}},
    }  # fmt: skip
    return Report(**data | fields)


def test_the_summary_says_what_came_out() -> None:
    assert report().lines() == [
        "1,234,000 of 1,234,567 rows answered, 567 failed",
        "failed by code: missing_value 7, prompt_too_long 560",
        "tokens: 9,000,000 prompt (1,000 cached), 8,000,000 reasoning, 7,000 answer",
        "reasoning: complete 2,467,996, truncated 4",
        "right answers: 2,981 of 3,000 (99.4%)",
        "this run: 1,000 rows in 100 s, 8,000 tokens/s while the engine served",
    ]


def test_the_summary_counts_replaced_replicas_and_says_the_last() -> None:
    spent = JobUsage(lost=3, losses=[Loss(0.0, 1, "a (10.0.0.1)", "its engine died: no memory", "/logs/1.err")])
    (line,) = [line for line in report(spent=spent).lines() if "replaced" in line]
    assert line == (
        "replicas replaced in all runs: 3; the last: replica 1 on a (10.0.0.1) is replaced: its engine died: "
        "no memory; log: /logs/1.err"
    )
    read = Report.from_dict(json.loads(json.dumps(report(spent=spent).to_dict())))
    assert read.spent == spent


def test_the_summary_counts_documents_that_were_cut() -> None:
    (line,) = [
        line for line in report(totals=Totals(answered=2_000, documents_truncated=1_500)).lines() if "doc" in line
    ]
    assert line == "documents: 1,500 of 2,000 were shown in part only"


def test_the_summary_says_nothing_of_what_was_not() -> None:
    assert report(planned=0, totals=Totals(), run=Run(), duplicate_ids=0).lines() == [
        "0 of 0 rows answered, 0 failed",
        "tokens: 0 prompt (0 cached), 0 reasoning, 0 answer",
    ]


def test_the_summary_counts_ids_that_are_there_twice() -> None:
    (line,) = [line for line in report(duplicate_ids=1_500).lines() if "user id" in line]
    assert line.startswith("1,500 ")


def test_a_run_that_served_no_time_has_no_speed() -> None:
    assert Run(tokens=5).tokens_per_s == 0.0


def test_a_report_is_read_back_as_it_was_stored() -> None:
    stored = json.loads(json.dumps(report(duplicate_ids=3).to_dict()))
    assert Report.from_dict(stored) == report(duplicate_ids=3)


def test_what_a_newer_version_has_stored_beside_it_is_left_out() -> None:
    mine = report(history=[Point(1.0, 2, 3, 4)], replicas=[ReplicaUse.of(Slot(0))])
    stored = json.loads(json.dumps(mine.to_dict()))
    for part in (
        stored, stored["totals"], stored["run"], stored["spent"], stored["spent"]["use"], stored["replicas"][0]
    ):  # fmt: skip
        part["later"] = {"x": 1}
    stored["history"][0].append("later")
    assert Report.from_dict(stored) == mine

    assert stored["versions"] == versions()
    assert {"magbatch", "python", "ray", "pyarrow"} <= versions().keys()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "-"),
        ("", ""),
        ("  two\n\n lines\tof it ", "two lines of it"),
        ("größe 日本 🦙", "größe 日本 🦙"),
        ("bell\x07 and \x1b[31mred", "bell· and ·[31mred"),  # nothing of a document reaches the terminal as a command
        ("x" * 100, "x" * 100),
        ("x" * 101, "x" * 99 + "…"),
    ],
)
def test_one_line_fits_a_terminal(text: str | None, line: str) -> None:
    assert one_line(text) == line


def test_settings_show_the_arguments_that_were_used(job: SmallJob) -> None:
    job.ask(1)
    shown = settings(job.spec(), {"max_num_seqs": 99, "max_model_len": 5})
    assert shown["model"] == {
        "source": "builtin:tiny",
        "engine": "fake",
        "revision": None,
        "engine_args": {"max_num_seqs": 99, "max_model_len": 5},
    }
    assert shown["output"]["commit_rows"] == 256  # what nobody set is shown as well
    json.dumps(shown)


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
    assert count(pa.table({"id": ["a", None, None, ""]})) == 0  # no id is no id


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
from magbatch.report.report import DuplicateIds
tempfile.tempdir = sys.argv[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # the kernel refuses to write more, as a full disk does
table = pa.table({"id": [f"id-{n}" for n in range(100_000)], "sample": pa.array([0] * 100_000, pa.int32())})
try:
    with DuplicateIds("id") as ids:
        ids.see("results", table)
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
