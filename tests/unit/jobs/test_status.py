"""Status follows a job from its start to its end, from its output alone."""

import io

import pytest
from rich.console import Console
from support.small_job import SmallJob

from magbatch.errors import OutputError
from magbatch.jobs.run import RunOutcome, run
from magbatch.jobs.status import status
from magbatch.spec import JobSpec


def go(spec: JobSpec, limit: int | None = None) -> tuple[RunOutcome, str]:
    """Run a job whose rows are all committed, so no fleet is needed; returns the outcome and what the console said."""
    said = io.StringIO()
    return run(spec, Console(file=said, width=300), limit), said.getvalue()


def test_status_follows_a_job_from_its_start_to_its_end(either_job: SmallJob) -> None:
    job = either_job
    job.ask(10, question=[None if row == 4 else f"What is {row}?" for row in range(10)])
    with pytest.raises(OutputError, match="no magbatch job here"):
        status(job.output)
    job.begin()
    fresh = {
        "job": "small", "output": job.output, "complete": False, "planned": 10, "done": 0, "answered": 0, "failed": 0,
        "shards": 3, "shards_done": 0, "run": None, "state": "not complete", "at": None, "why": None,
        "exit_code": None, "work": None, "by_code": {},
    }  # fmt: skip
    assert status(job.output).to_dict() == fresh
    job.answer()
    open_end = fresh | {"done": 10, "answered": 9, "failed": 1, "shards_done": 3}
    assert status(job.output).to_dict() == open_end
    go(job.spec())
    ended = status(job.output).to_dict()
    assert ended["run"]["alive"] is False
    whole = {"complete": True, "state": "complete", "exit_code": 0, "by_code": {"missing_value": 1}}
    assert ended == open_end | whole | {"run": ended["run"]}
