"""`status` shows the state of a job and the command to run next."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.commands import command, spec_file
from support.small_job import SmallJob

from magbatch.errors import EngineStartError, InterruptedJobError, TooManyFailedError
from magbatch.jobs.choice import Choice
from magbatch.jobs.retry import Retry, prepare
from magbatch.ledger.lease import Lease
from magbatch.report.heartbeat import Heartbeat
from magbatch.report.progress import JobProgress
from magbatch.storage import open_store


def test_status_of_a_job_that_is_not_complete(job: SmallJob) -> None:
    job.begin()
    lines = command("status", job.output).stdout.splitlines()
    assert lines == [
        "small: not complete, 0 of 10 rows done (0.0%)",
        "  0 answered, 0 failed",
        "  0 of 3 shards done",
        f"Next: magbatch run {job.output}/_magbatch/spec.yaml",
    ]
    job.answer()
    job.ledger.store.delete(job.objects()[0])
    result = command("status", job.output)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("small: not complete, 6 of 10 rows done (60.0%)")


def test_status_of_a_complete_job(job: SmallJob) -> None:
    job.answer()
    job.finalise()
    result = command("status", job.output)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "small: complete, 10 of 10 rows done (100.0%)"
    assert result.stdout.splitlines()[-1] == f"Next: magbatch verify {job.output}"
    found = json.loads(command("status", job.output, "--json").stdout)
    assert found == {
        "by_code": {},
        "job": "small", "output": job.output, "complete": True, "planned": 10, "done": 10, "answered": 10, "failed": 0,
        "shards": 3, "shards_done": 3, "run": None, "state": "complete", "at": None, "why": None, "exit_code": 0,
        "work": None, "next": f"magbatch verify {job.output}",
    }  # fmt: skip


def test_status_tells_how_a_run_goes_and_when_it_has_died(job: SmallJob) -> None:
    job.begin()
    run = {
        "version": 1, "running": True, "at": time.time() - 3, "host": "node-7", "pid": 42, "truncated": 2,
        "rows_per_s": 12.5, "tokens_per_s": 3400.0, "replicas": {"serving": 1, "starting": 2, "lost": 0},
        "cost": 7.5, "currency": "USD",
        "eta": {"expected_s": 3600, "early_s": 3500, "late_s": 4000}, "spent": {"device_s": 5400}, "history": [],
    }  # fmt: skip
    store = open_store(job.output)
    store.write("_magbatch/progress.json", json.dumps(run).encode())
    lines = command("status", job.output).stdout.splitlines()
    assert lines[0] == "small: running, 0 of 10 rows done (0.0%)"
    assert "  12.5 rows/s, 3,400 tokens/s, 2 truncated, 1 replica serving, 2 starting" in lines
    assert "  ETA 1h (58m20s to 1h6m)" in lines
    assert any(line.endswith("s ago, from host node-7, process 42") for line in lines)
    assert "  1.50 device hours so far, 7.50 USD" in lines
    assert lines[-1] == f"Next: magbatch status {job.output}"
    store.write("_magbatch/progress.json", json.dumps(run | {"at": time.time() - 7200}).encode())
    lines = command("status", job.output).stdout.splitlines()
    assert lines[0].startswith("small: lost, ")
    assert not any("ETA" in line or "tokens/s" in line or "serving" in line for line in lines), "nobody works on it"
    assert any(line.startswith("  no heartbeat since 20") for line in lines)
    assert "  last heartbeat 7,200 s ago, from host node-7, process 42" in lines
    assert lines[-1] == f"Next: magbatch run {job.output}/_magbatch/spec.yaml"
    shown = json.loads(command("status", job.output, "--json").stdout)["run"]
    assert (shown["rows_per_s"], shown["eta"], shown["replicas"]["serving"]) == (0, None, 0)


def test_status_of_a_run_that_was_killed_says_so_at_once(job: SmallJob) -> None:
    """No minute passes: the process was on this machine, and is gone. Its parent has not asked after it yet."""
    job.begin()
    program = (
        "import os, sys\n"
        "from magbatch.ledger.lease import Lease\n"
        "from magbatch.report.heartbeat import Heartbeat\nfrom magbatch.ledger.layout import RECORD\n"
        "from magbatch.ledger.ledger import Ledger\n"
        "from magbatch.report.progress import JobProgress\n"
        "ledger = Ledger(sys.argv[1])\n"
        "progress = JobProgress(ledger.spec(), 10, 0)\n"
        "heartbeat = Heartbeat(ledger.store, progress, lambda: None, print)\n"
        "with Lease(ledger.store, print).acquire(), heartbeat.beating():\n"
        "    while not os.path.exists(f'{sys.argv[1]}/{RECORD}'): pass\n"
        "    print('works', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", program, job.output]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "works\n"
        lines = command("status", job.output).stdout.splitlines()
        assert lines[0] == "small: starting, 0 of 10 rows done (0.0%)"
        assert lines[-1] == f"Next: magbatch status {job.output}"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        lines = command("status", job.output).stdout.splitlines()
    assert lines[0] == "small: killed, 0 of 10 rows done (0.0%)"
    assert any("gone from this machine" in line for line in lines)
    assert not any("ETA" in line or "rows/s" in line for line in lines)
    assert lines[-1] == f"Next: magbatch run {job.output}/_magbatch/spec.yaml"


@pytest.mark.parametrize(
    ("error", "state", "says", "code"),
    [
        (InterruptedJobError("stopped"), "interrupted", "; committed rows are kept", 3),
        (KeyboardInterrupt(), "interrupted", "; committed rows are kept", 3),
        (TooManyFailedError("31 rows failed, too many"), "ended early", ": 31 rows failed, too many", 1),
        (EngineStartError("no device has 80 GiB free\nmore"), "failed", ": no device has 80 GiB free", 2),
        (ZeroDivisionError("by zero"), "failed", ": ZeroDivisionError: by zero", 4),
    ],
)
def test_status_says_how_a_run_ended(job: SmallJob, error: BaseException, state: str, says: str, code: int) -> None:
    job.begin()
    path = spec_file(job)
    store, following = open_store(job.output), JobProgress(job.spec(), 10, 0)
    with pytest.raises(type(error)), Heartbeat(store, following, lambda: None, print).beating():
        raise error
    lines = command("status", path).stdout.splitlines()
    assert lines[0] == f"small: {state}, 0 of 10 rows done (0.0%)"
    (line,) = (line for line in lines if line.startswith(f"  {state} at 20"))
    assert line.endswith(f", with exit code {code}{says}")
    more = " --set limits.max_failed_rows=100%" if state == "ended early" else ""
    assert lines[-1] == f"Next: magbatch run {path}{more}"
    found = json.loads(command("status", path, "--json").stdout)
    assert (found["state"], found["exit_code"], found["run"]["alive"]) == (state, code, False)


def test_a_retry_that_is_not_finished_is_said_with_the_command_that_goes_on(failed: SmallJob) -> None:
    found = prepare(failed.ledger, Choice(), [])
    assert isinstance(found, Retry)
    words = ("retry", "--where", "missing_value", "--set", "sampling.max_tokens=9")
    with suppress(InterruptedError), Lease(failed.ledger.store, print, command=words).acquire():
        found.output().begin(found.spec, found.plan)
        lines = command("status", failed.output).stdout.splitlines()
        assert any(line.startswith("  a retry of it is under way (host ") for line in lines)
        assert lines[-1] == f"Next: magbatch status {failed.output}"
        raise InterruptedError
    lines = command("status", failed.output).stdout.splitlines()
    assert lines[0].startswith("small: complete, ")
    assert any(line.startswith("  a retry of it is unfinished") for line in lines)
    assert lines[-1] == (f"Next: magbatch retry {failed.output} --where missing_value --set sampling.max_tokens=9")


def test_status_of_no_rows(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.ask(0)
    job.begin()
    assert "0 of 0 rows done (100%)" in command("status", job.output).stdout
