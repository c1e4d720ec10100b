"""`magbatch bench` as a user runs it: real engines, a tiny number of rows."""

import json
from pathlib import Path

import pytest
from support.magbatch_cli import magbatch


@pytest.mark.fire
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workload", ["text", "image"])
def test_a_benchmark_of_raw_and_magbatch(tmp_path: Path, workload: str) -> None:
    report, kept = tmp_path / "bench.json", tmp_path / "kept"
    arguments = ["--arms", "raw,magbatch", "--rows", "24", "--rounds", "1", "--no-pin", "--keep", str(kept)]
    done = magbatch("bench", workload, *arguments, "--json", str(report), timeout=880)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| raw | " in done.stdout
    assert f"| {workload}: magbatch / raw, tokens/s | " in done.stdout
    assert f"every run: {report}" in done.stdout
    (suite,) = json.loads(report.read_text())["suites"]
    runs = {run["arm"]: run for run in suite["runs"]}
    assert runs.keys() == {"raw", "magbatch"}
    assert {run["tokens"] for run in runs.values()} == {suite["tokens"]}
    assert all(run["rows"] == 24 and run["seconds"] > 0 and run["start_s"] > 0 for run in runs.values())
    assert suite["engine_settings"]["scheduler_config.max_num_seqs"] == 64
    assert suite["engine_settings"]["cache_config.enable_prefix_caching"] is True
    assert suite["engine_settings"]["device"] == "cpu"
    cache_gb = suite["engine_settings"]["model_config.multimodal_config.mm_processor_cache_gb"]
    assert cache_gb == (0 if workload == "image" else 4), "no image comes twice"
    assert list((kept / workload / "01-magbatch" / "out" / "results").glob("*.parquet"))


@pytest.mark.fire
def test_a_null_engine_against_a_bare_loop(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    done = magbatch("bench", "null", "--rows", "600", "--rounds", "1", "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    (target,) = json.loads(report.read_text())["targets"]
    assert target["what"].startswith("null engine, 500-token prompts")
    assert len(target["runs"]) == 2
    assert min(target["runs"]) > 0


@pytest.mark.fire
@pytest.mark.timeout(600)
def test_rows_of_one_document_side_by_side_against_the_files_order(tmp_path: Path) -> None:
    report, kept = tmp_path / "bench.json", tmp_path / "kept"
    arguments = ["--rows", "40", "--rounds", "1", "--keep", str(kept), "--json", str(report)]
    done = magbatch("bench", "prefix", *arguments, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    (target,) = json.loads(report.read_text())["targets"]
    assert target["what"].startswith("40 rows over 20 documents, 2 replicas")
    assert len(target["runs"]) == 2
    assert target["value"] == pytest.approx(target["runs"][0] / target["runs"][1])
    for group in ("none", "auto"):
        output = kept / "prefix" / f"0-{group}" / "out"
        written = json.loads((output / "_magbatch" / "report.json").read_text())
        assert written["settings"]["input"]["group"] == group
        assert written["totals"]["answered"] == 40
