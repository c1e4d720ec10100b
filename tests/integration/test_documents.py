"""Documents into typed columns on the real engine: the shipped job, with other files among its documents.

The model thinks before the JSON begins, though its system prompt holds a closed think part; the JSON is right.
"""

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow
from support.document_files import encrypted_pdf, pages_pdf, text_pdf, tiff
from support.magbatch_cli import ROOT, JobFiles, descendants, magbatch, named, read, start

from magbatch.model.tokenizer import Tokenizer

SHIPPED = ROOT / "jobs/data/documents.parquet"
BUDGET = 512
BOMB = tiff(Pillow.new("1", (28, 28)), Pillow.new("1", (40_000, 40_000)), compression="group4")
NOT_ANSWERED = {
    "encrypted": (encrypted_pdf("secret"), "document_encrypted"),
    "empty": (b"", "document_empty"),
    "no pages": (pages_pdf([]), "document_empty"),
    "damaged": (b"%PDF-1.7 and nothing more", "document_unreadable"),
    "no document": (b"PK\x03\x04\x00\x00", "document_unreadable"),
    "too long": (text_pdf(*["x"] * 500), "too_many_pages"),
    "bomb": (BOMB, "document_too_large"),
}
Run = tuple[Path, list[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "in").mkdir()
    shipped = pq.read_table(SHIPPED)
    pq.write_table(shipped, folder / "in" / "a.parquet")
    more = {name: data for name, (data, _) in NOT_ANSWERED.items()}
    rows = [{"id": name, "file": None, "document": data, "expected": ""} for name, data in more.items()]
    pq.write_table(pa.Table.from_pylist(rows, schema=shipped.schema), folder / "in" / "b.parquet")
    done = magbatch(
        "run", "jobs/documents-daily.yaml", "--json",
        "--set", f"input.path={folder}/in", "--set", f"output.path={folder}/out",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out", read(folder / "out"), json.loads(done.stdout)


def test_pdfs_and_tiffs_become_right_typed_columns(ran: Run, tokenizer: Tokenizer) -> None:
    output, rows, report = ran
    found = {row["id"]: row for row in rows}
    wrong = []
    for asked in pq.read_table(SHIPPED, columns=["id", "file", "expected"]).to_pylist():
        row = found[asked["id"]]
        assert row["file"] == asked["file"]
        if json.loads(asked["expected"]) != {"total": row["total"], "items": row["items"]}:
            wrong.append(row["id"])
        assert json.loads(row["answer"]) == {"total": row["total"], "items": row["items"]}
        assert row["reasoning_status"] == "complete"
        assert row["reasoning"], "the grammar of the answer began before the thinking"
        assert row["reasoning_tokens"] == len(tokenizer.encode_text(row["reasoning"])) + 1 <= BUDGET
        assert (row["document_pages"], row["document_parts"][0]["last_page"]) == (1, 1)
    assert len(wrong) <= 1, wrong
    kinds = duckdb.sql(f"select typeof(total), typeof(items) from '{output}/results/*.parquet' limit 1").fetchone()
    assert kinds == ("DOUBLE", "BIGINT")
    assert report["totals"]["answered"] == 60


def test_what_is_no_document_is_a_dead_letter_beside_them(ran: Run) -> None:
    letters = read(ran[0], "errors")
    assert {row["id"]: row["error_code"] for row in letters} == {name: code for name, (_, code) in NOT_ANSWERED.items()}
    assert {row["step"] for row in letters} == {"render"}
    assert all(row["message"].startswith("column 'document': ") for row in letters)


def test_the_readmes_query_gives_what_it_shows(ran: Run) -> None:
    text = (ROOT / "jobs/README.md").read_text(encoding="utf-8")
    query, table = re.findall(r"```sql\n(select[^`]*documents-daily[^`]*)```\n\n```\n([^`]*)```", text)[0]
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if "│" in line]
    found = duckdb.sql(query.replace("out/documents-daily", str(ran[0])))
    assert lines[0] == found.columns
    shown = [list(map(str, row)) for row in found.fetchall()]
    assert [row for row in shown if row[0] in ("pdf", "tiff")] == lines[1:]


def test_the_job_is_complete(ran: Run) -> None:
    verified = magbatch("verify", str(ran[0]), "--json")
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["problems"] == []


@pytest.mark.fire
def test_renderers_and_readers_that_are_killed_lose_no_document(job: JobFiles) -> None:
    """kill -9 of both again and again, in documents of many pages; every one is answered, and none is accused."""
    documents = [text_pdf(*[f"document {number} page {page}" for page in range(20)]) for number in range(48)]
    job.write_input(48, document=documents)
    job.engine |= {"token_s": 0.001}
    columns = {"id": "id", "prompt": "question", "document": "document"}
    source = {"path": str(job.input), "columns": columns, "document": {"mode": "both", "overflow": "map_reduce"}}
    spec = job.write_spec(input=source, limits={"max_prompt_tokens": 2000, "max_images": 4})
    process = start("run", spec, log=job.folder / "log")
    killed = {"magbatch.documents.renderer": 0, "ReadCustom": 0}
    last = dict.fromkeys(killed, 0.0)
    while process.poll() is None:
        for name, pause_s in (("magbatch.documents.renderer", 2.0), ("ReadCustom", 12.0)):
            if time.monotonic() - last[name] > pause_s and killed[name] < 20:
                for one in named(descendants(process), name):
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                    killed[name] += 1
                    last[name] = time.monotonic()
        time.sleep(0.05)
    assert process.returncode == 0, (job.folder / "log").read_text()
    assert killed["magbatch.documents.renderer"] >= 3, killed
    rows = read(job.output)
    assert sorted(row["id"] for row in rows) == sorted(f"id-{number}" for number in range(48))
    assert {row["document_pages"] for row in rows} == {20}
    assert all(row["document_parts"][-1]["last_page"] == 20 for row in rows)
    assert read(job.output, "errors") == []
    assert magbatch("verify", str(job.output)).returncode == 0
