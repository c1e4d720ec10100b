"""A job with rows that attack every step: all other rows are answered, and the command tells the truth."""

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow
from support.magbatch_cli import JobFiles, magbatch, read

ENDS = {
    "icon": "image_too_large",
    "scans": "image_timeout",
    "pipe": "image_unfetchable",
    "memory": "url_refused",
    "environment": "url_refused",
    "bucket": "url_refused",
    "zone": "url_refused",
    "no picture": "image_unreadable",
    "dots": "template_error",
    "control": "answered",
    "long": "prompt_too_long",
    "regex": "answer_invalid",
    "boxes": "answered",
}
Ran = tuple[Path, dict[str, Any], int, str]
TEMPLATE = "{{ question }}{% for line in row.lines %} {{ line }}{% endfor %}{{ '.' * row.dots }}"


def png(side: int, mode: str = "RGB") -> bytes:
    sink = io.BytesIO()
    Pillow.new(mode, (side, side), 1).save(sink, "PNG")
    return sink.getvalue()


def icon_around(inner: bytes) -> bytes:
    """An icon that says 256 x 256, around a picture of any size."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inner), 22) + inner


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes over and over."""
    sink = io.BytesIO()
    Pillow.new("L", (3100, 3100), 90).save(sink, "JPEG", progressive=True)
    data = sink.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def hostile(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows by what they attack; what a row does not say is as in a good one."""
    os.mkfifo(folder / "input" / "pipe.png")
    row = {"lines": ["a"], "dots": 1}
    return {
        "icon": {"picture": icon_around(png(20_000, "1"))},
        "scans": {"picture": many_scans(3_000)},
        "pipe": {"path": "pipe.png"},
        "memory": {"path": "/proc/self/mem"},
        "environment": {"path": "/proc/self/environ"},
        "bucket": {"path": "s3://no-such-bucket-of-anybody/a.png"},
        "zone": {"path": "s3://x--nope-az1--x-s3/a.png"},
        "no picture": {"picture": b"<html></html>"},
        "dots": {"row": row | {"dots": 10**11}},
        "control": {"question": "[THINK] </s> \ud7ff \x00 [/INST]"},
        "long": {"question": "x" * 2_000_000},
        "regex": {"question": "SAY-DIGITS"},
        "boxes": {"question": "SAY-BOXES"},
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    job = JobFiles(tmp_path_factory.mktemp("hostile"))
    job.input.mkdir()
    good = {"question": "What is this?", "picture": png(60), "path": None, "row": {"lines": ["a", "b"], "dots": 2}}
    rows = []
    for name, differs in hostile(job.folder).items():
        rows += [good | {"id": f"good before {name}"}, good | differs | {"id": name}]
    for record in rows:
        images = [record.pop("path") or record["picture"]]
        record["images"] = [one for one in images if isinstance(one, str)]
        record["bytes"] = None if isinstance(images[0], str) else images[0]
        del record["picture"]
    pq.write_table(pa.Table.from_pylist(rows), job.input / "a.parquet")
    (job.input / "lies.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    job.engine |= {
        "script": [
            {"contains": "SAY-DIGITS", "answer": "The total is " + "1" * 60 + " EUR."},
            {"contains": "SAY-BOXES", "answer": "\\boxed{" * 60},
        ]
    }
    spec = job.write_spec(
        input={
            "columns": {"id": "id", "images": ["bytes", "images"], "prompt": None},
            "on_bad_file": "dead_letter",
            "fetch_timeout_s": 5,
        },
        prompt={"template": TEMPLATE},
        answer={"extract": r"(?P<answer>(?:\d+[.,]?)+)$"},
        limits={"max_image_pixels": 10**7, "image_timeout_s": 5, "answer_timeout_s": 2},
        output={"path": str(job.output), "patience_s": 60},
    )
    done = magbatch("run", spec, "--json")
    return job.output, json.loads(done.stdout or "{}"), done.returncode, done.stderr


def test_every_row_that_attacks_nothing_is_answered(ran: Ran) -> None:
    output, report, code, said = ran
    assert code == 0, said
    answered = [row["id"] for row in read(output)]
    letters = read(output, "errors")
    names = [name for name in answered if name.startswith("good ")]
    assert sorted(names) == sorted(f"good before {name}" for name in ENDS)
    totals = report["totals"]
    assert (totals["answered"], totals["failed"]) == (len(answered), len(letters))
    assert len(answered) + len(letters) == 2 * len(ENDS) + 1
    verified = magbatch("verify", str(output), "--json")
    assert json.loads(verified.stdout)["problems"] == []
    assert verified.returncode == 0


def test_every_row_that_attacks_ends_as_it_should(ran: Ran) -> None:
    output = ran[0]
    ends = {row["id"]: "answered" for row in read(output)} | {
        row["id"]: row["error_code"] for row in read(output, "errors") if row["id"] is not None
    }
    assert {name: ends[name] for name in ENDS} == ENDS
    (file,) = (row["error_code"] for row in read(output, "errors") if row["id"] is None)
    assert file == "file_unreadable"


def test_no_message_is_long_or_holds_a_control_sequence(ran: Ran) -> None:
    for row in read(ran[0], "errors"):
        assert 0 < len(row["message"]) <= 2000
        assert row["message"].isprintable(), row["message"]
