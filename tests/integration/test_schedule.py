"""A schedule by its commands, on real Ray with the scripted engine: every row once over all runs."""

import json
from collections import Counter

from support.magbatch_cli import JobFiles, magbatch, read


def test_each_tick_answers_what_is_new(job: JobFiles) -> None:
    job.write_input(6, "a.parquet")
    job.write_input(5, "b.parquet", id=[f"b-{i}" for i in range(5)])
    spec = job.write_spec(input={"incremental": True}, schedule={"cron": "0 6 * * *", "timezone": "Europe/Paris"})
    refused = magbatch("run", spec)
    assert refused.returncode == 2
    assert "magbatch schedule tick SPEC" in refused.stderr

    first = magbatch("schedule", "tick", spec, "--at", "2026-01-05T06:00")
    assert first.returncode == 0, first.stderr
    runs = job.output / "runs"
    lines = first.stdout.splitlines()
    assert lines[0] == f"test: tick 2026-01-05T05:00:00Z: 2 files into {runs}/20260105T050000Z"
    assert lines[-1] == f"Next: magbatch verify {runs}/20260105T050000Z"

    (job.input / "bad.parquet").write_bytes(b"no Parquet")  # taken once, like all other files
    job.write_input(4, "c.parquet", id=[f"c-{i}" for i in range(4)])
    (job.folder / "specs").mkdir()
    job.spec.rename(job.folder / "specs/daily.yaml")
    specs = str(job.folder / "specs")
    lenient = ("--set", "input.on_bad_file=dead_letter")
    second = magbatch("schedule", "tick", f"{specs}/daily.yaml", *lenient)  # the latest by its cron
    assert second.returncode == 0, second.stderr
    assert ": 2 files into " in second.stdout.splitlines()[0]
    empty = magbatch("schedule", "tick", f"{specs}/daily.yaml", *lenient)
    assert empty.returncode == 0
    assert empty.stdout.splitlines()[0].endswith(", as before")

    found = Counter(row["id"] for run in runs.iterdir() if list(run.glob("results/*")) for row in read(run))
    assert found == dict.fromkeys(
        [*(f"id-{i}" for i in range(6)), *(f"b-{i}" for i in range(5)), *(f"c-{i}" for i in range(4))], 1
    )
    for run in runs.iterdir():
        assert magbatch("verify", str(run)).returncode == 0
    (row,) = json.loads(magbatch("schedule", "list", specs, "--json").stdout)
    assert (row["runs"], row["last"]["state"], row["last"]["rows"]) == (2, "complete", 5)
