"""Whole jobs on real Ray with the scripted engine: what users meet, and what breaks under them."""

import json
import os
import signal
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.magbatch_cli import (
    JobFiles,
    alive,
    check_end,
    committed,
    descendants,
    journal,
    magbatch,
    peak_memory,
    read,
    scraped,
    start,
    wait_until,
)


def test_a_stopped_run_loses_nothing_and_pays_for_nothing_twice(job: JobFiles) -> None:
    """Ctrl-C in a terminal: everything in the group is told. SIGTERM is what ends the jobs of test_submit.py."""
    job.write_input(120)
    job.engine["token_s"] = 0.02
    spec = job.write_spec()
    process = start("run", spec, log=job.folder / "log", HOME=str(job.folder))
    wait_until(lambda: committed(job.output) > 0 or process.poll() is not None, "a first commit")
    family = descendants(process)
    assert len(family) > 3
    assert not (job.folder / ".ray/auth_token").exists(), "a later `ray start --head` would ask for it"
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(60)
    log = (job.folder / "log").read_text()
    assert code == 3, log
    assert "every finished row is committed" in log
    assert alive(family) == []
    stands = magbatch("status", spec).stdout.splitlines()
    assert stands[0].startswith("test: interrupted, ")
    assert stands[-1] == f"Next: magbatch run {spec}"
    done = {row["row_id"] for row in read(job.output)}
    assert len(done) < 120, "the run was over before it was stopped"
    seen = {row_id: journal(job.journal)[row_id] for row_id in done}

    before = committed(job.output)
    last, scrapes = scraped(job.folder, "run", spec)
    assert last.returncode == 0, last.stderr
    answered = ("magbatch_rows_committed_total", frozenset({("outcome", "answered")}))
    assert next(scrape[answered] for scrape in scrapes if answered in scrape) >= before
    check_end(scrapes[-1], job.output)  # what the run that was stopped has answered counts too
    rows = [row["row_id"] for row in read(job.output)]
    assert len(rows) == len(set(rows)) == 120
    assert {row_id: journal(job.journal)[row_id] for row_id in seen} == seen
    runs = json.loads((job.output / "_magbatch/report.json").read_text())["runs"]
    assert [(run["how"], run["rows"]) for run in runs] == [("interrupted", len(done)), ("complete", 120 - len(done))]
    assert runs[0]["began"] < runs[0]["ended"] < runs[1]["began"] < runs[1]["ended"]
    assert magbatch("verify", str(job.output)).returncode == 0


def test_a_row_that_kills_engines_is_a_dead_letter_and_its_neighbours_are_answered(job: JobFiles) -> None:
    job.write_input(60)
    job.engine |= {"token_s": 0.002, "script": [{"contains": "What is 33?", "do": "die"}]}
    done, scrapes = scraped(job.folder, "run", job.write_spec(), "--json")
    assert done.returncode == 0, done.stderr
    (letter,) = read(job.output, "errors")
    assert (letter["id"], letter["error_code"], letter["step"]) == ("id-33", "engine_killer", "generate")
    assert {row["id"] for row in read(job.output)} == {f"id-{i}" for i in range(60)} - {"id-33"}
    assert journal(job.journal)[letter["row_id"]] == 3
    report = json.loads(done.stdout)
    assert (report["run"]["engine_deaths"], report["spent"]["lost"]) == (3, 3)
    said = [line for line in done.stderr.splitlines() if "is replaced" in line]
    assert len(said) == 3
    for loss, text in zip(report["spent"]["losses"], said, strict=True):
        assert loss["why"] == "its engine died: the script ends the engine; its open rows go to another replica"
        assert text == f"replica 0 on {loss['node']} is replaced: {loss['why']}; log: {loss['log']}"
        assert "/logs/worker-" in loss["log"]
    check_end(scrapes[-1], job.output)
    deaths, restarts = ("magbatch_engine_deaths_total", frozenset()), ("magbatch_replica_restarts_total", frozenset())
    assert (scrapes[-1][deaths], scrapes[-1][restarts]) == (3, 3)
    for before, after in pairwise(scrapes):  # what a dead replica has counted stays
        fell = [key for key, value in before.items() if key[0].endswith(("_total", "_count")) and after[key] < value]
        assert fell == []
    replicas = {value for _, labels in scrapes[-1] for name, value in labels if name == "replica"}
    assert replicas == {"0"}, "who comes after it takes its number over"
    assert magbatch("verify", str(job.output)).returncode == 0


def test_an_engine_that_does_not_start_speaks_for_itself(job: JobFiles) -> None:
    job.write_input(10)
    job.engine["start_error"] = "no device has 80 GiB free"
    failed = magbatch("run", job.write_spec())
    assert failed.returncode == 2
    message, *notes = failed.stderr.strip().splitlines()[-3:]
    assert message == "magbatch: no device has 80 GiB free"
    assert [note.split(":")[0] for note in notes] == ["The engine's log", "Ray's logs, of all workers"]
    log = Path(notes[0].removeprefix("The engine's log: ").partition(" on ")[0])
    assert log.parent == Path(notes[1].partition(": ")[2])
    assert log.is_file()
    assert "Traceback" not in failed.stderr


def test_no_rows_is_a_complete_job_with_the_contracts_columns(job: JobFiles) -> None:
    job.write_input(0)
    done = magbatch("run", job.write_spec())
    assert done.returncode == 0, done.stderr
    (part,) = job.output.glob("results/*.parquet")
    assert pq.read_schema(part).names[:3] == ["row_id", "sample", "id"]
    assert magbatch("verify", str(job.output)).returncode == 0


def test_bad_rows_and_a_bad_file_are_dead_letters_and_too_many_end_with_1(job: JobFiles) -> None:
    job.write_input(12, question=[None if i % 4 == 0 else f"What is {i}?" for i in range(12)])
    (job.input / "b.parquet").write_bytes(b"this is no Parquet file")
    refused = magbatch("run", job.write_spec())
    assert refused.returncode == 2
    assert "b.parquet" in refused.stderr
    assert not job.output.exists()
    source = {"path": str(job.input), "columns": {"id": "id", "prompt": "question"}, "on_bad_file": "dead_letter"}
    spec = job.write_spec(input=source, limits={"max_prompt_tokens": 2000, "max_failed_rows": 3})
    done = magbatch("run", spec)
    assert done.returncode == 1, done.stderr
    assert "missing_value 3" in done.stdout
    letters = [(letter["id"], letter["error_code"], letter["step"]) for letter in read(job.output, "errors")]
    assert sorted(letters, key=str) == [
        *((f"id-{i}", "missing_value", "render") for i in (0, 4, 8)),
        (None, "file_unreadable", "read"),
    ]
    assert len(read(job.output)) == 9
    assert magbatch("run", spec, "--set", "limits.max_failed_rows=4").returncode == 0
    assert magbatch("verify", str(job.output)).returncode == 0


def test_limit_is_a_job_of_its_own_spread_over_the_input(job: JobFiles) -> None:
    job.write_input(90)
    spec = job.write_spec()
    done = magbatch("run", spec, "--limit", "9", "--json")
    assert done.returncode == 0, done.stderr
    output = Path(json.loads(done.stdout)["output"])
    assert output != job.output
    assert not job.output.exists()
    assert sorted(int(row["id"][3:]) for row in read(output)) == list(range(0, 90, 10))


@pytest.mark.parametrize("samples", [3])
def test_samples_duplicate_ids_and_several_replicas(job: JobFiles, samples: int) -> None:
    job.write_input(40, id=["twice" if i < 2 else f"id-{i}" for i in range(40)])
    spec = job.write_spec(sampling={"n": samples, "max_tokens": 100}, replicas={"min": 2, "max": 2, "gpus": 0})
    job.engine["token_s"] = 0.01
    done = magbatch("run", spec)
    assert done.returncode == 0, done.stderr
    rows = read(job.output)
    assert len(rows) == 40 * samples
    assert len({(row["row_id"], row["sample"]) for row in rows}) == 40 * samples
    assert "1 row has the user id of an earlier row" in done.stdout
    assert sum(row["id"] == "twice" for row in rows) == 2 * samples
    assert magbatch("verify", str(job.output)).returncode == 0
    (log,) = [path.read_text() for path in (job.output / "_magbatch" / "logs").iterdir()]
    for told in ("Z start: magbatch run ", "Z plan: ", "Z replica 0 ", "Z replica 1 "):
        assert told in log
    *_, done_rows, end = log.splitlines()
    assert done_rows.endswith("Z 40 of 40 rows done, 40 of them in this run, 0 failed")
    assert end.endswith("Z end: complete")


@pytest.mark.fire  # a minute of both cores
def test_memory_does_not_grow_with_the_rows(job: JobFiles) -> None:
    # The smaller job already fills what is bounded: open shards, the audit's window, the threads' arenas.
    peaks = []
    for rows in (12_000, 48_000):
        job.write_input(rows)
        job.output = job.folder / f"out-{rows}"
        process = start("run", job.write_spec(), log=job.folder / "log")
        peaks.append(peak_memory(process, {"driver": "magbatch run", "replica": "MapWorker"}))
        assert process.wait() == 0, (job.folder / "log").read_text()
        assert len(read(job.output)) == rows
    small, large = peaks
    for name in small:
        assert large[name] < 1.15 * small[name], f"{name}: {small[name] / 1e6:.0f} MB -> {large[name] / 1e6:.0f} MB"
