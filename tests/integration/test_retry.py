"""Rows asked again and objects merged, by the commands, on real Ray with the scripted engine."""

import json
import signal
from pathlib import Path

import duckdb
import pytest
from support.magbatch_cli import JobFiles, alive, committed, descendants, journal, magbatch, read, start, wait_until

SANE = ["--set", "model.engine_args.script=[]"]


def globbed(output: Path) -> tuple[int, int]:
    """Records and different rows that a plain glob over both folders finds."""
    folders = " union all ".join(f"select row_id from '{output}/{kind}/*.parquet'" for kind in ("results", "errors"))
    found = duckdb.sql(f"select count(*), count(distinct row_id) from ({folders})").fetchone()
    assert found is not None
    return found[0], found[1]


def test_failed_rows_are_asked_again_and_objects_merged(job: JobFiles) -> None:
    job.write_input(60)
    job.engine["script"] = [{"contains": f"What is {row}?", "do": "reject"} for row in (7, 33)]
    spec, output = job.write_spec(), str(job.output)
    assert magbatch("run", spec).returncode == 0
    assert sorted(letter["id"] for letter in read(output, "errors")) == ["id-33", "id-7"]
    none = magbatch("retry", output, "--where", "engine_killer")
    assert none.returncode == 0
    assert none.stdout.splitlines() == [
        "test: nothing to retry: there are no dead letters with the code engine_killer",
        f"Next: magbatch status {output}",
    ]
    done = magbatch("retry", output, "--where", "engine_rejected", *SANE)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "test: 2 rows retried: 2 answered, 0 as before"
    assert lines[1] == "  the job now: 60 rows answered, 0 failed"
    assert lines[-1] == f"Next: magbatch verify {output}"
    assert read(output, "errors") == []
    assert {row["id"] for row in read(output)} == {f"id-{row}" for row in range(60)}
    asked = journal(job.journal)
    assert sorted(asked.values()) == [1] * 58 + [2] * 2
    assert magbatch("verify", output).returncode == 0

    merged = json.loads(magbatch("compact", output, "--target-mb", "1", "--json").stdout)
    assert (merged["objects"], len(list(job.output.glob("results/*.parquet")))) == (2, 1)
    assert merged["objects_before"] > 10
    assert "nothing to merge" in magbatch("compact", output, "--target-mb", "1").stdout
    assert magbatch("verify", output).returncode == 0
    assert globbed(job.output) == (60, 60)
    again = magbatch("run", spec)
    assert "complete already" in again.stdout
    assert "60 of 60 rows answered, 0 failed" in again.stdout
    assert journal(job.journal) == asked


@pytest.mark.fire
def test_a_killed_retry_is_gone_on_with(job: JobFiles) -> None:
    job.write_input(60)
    job.engine["script"] = [{"contains": "What is", "do": "never_close"}]
    spec, output = job.write_spec(sampling={"max_tokens": 20}), str(job.output)
    assert magbatch("run", spec).returncode == 0
    assert {row["reasoning_status"] for row in read(output)} == {"truncated"}
    command = ["retry", output, "--only", "truncated", *SANE, "--set", "sampling.max_tokens=400"]
    command += ["--set", "model.engine_args.token_s=0.02"]
    process = start(*command, log=job.folder / "log")
    place = job.output / "_magbatch" / "retries" / "0001"
    wait_until(lambda: committed(place) > 0 or process.poll() is not None, "a first commit")
    family = descendants(process)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    wait_until(lambda: not alive(family), "the killed driver's processes to end")
    done = {row["row_id"] for row in read(place)}
    assert 0 < len(done) < 60, "the retry was over before it was killed"
    assert magbatch("verify", output).returncode == 0  # the job is complete all the while
    other = magbatch("retry", output, "--only", "truncated", *SANE)
    assert other.returncode == 2
    assert "sampling.max_tokens: 400 -> 20" in other.stderr

    last = magbatch(*command, "--json")
    assert last.returncode == 0, last.stderr
    shown = json.loads(last.stdout)
    assert (shown["rows"], shown["answered"], shown["totals"]["by_status"]) == (60, 60, {"complete": 60})
    asked = journal(job.journal)
    assert all(asked[row_id] == 2 for row_id in done), "a committed row was asked again"
    assert {row["reasoning_status"] for row in read(output)} == {"complete"}
    assert globbed(job.output) == (60, 60)
    assert magbatch("verify", output).returncode == 0
    assert not list(place.glob("**/*.parquet"))
