"""The model's files are found once for a command, and are those that the plan froze."""

from pathlib import Path

import pytest
from support.small_job import SmallJob

import magbatch.jobs.steps as module
from magbatch.jobs.steps import steps_of
from magbatch.plan.plan import Plan


def test_a_new_job_takes_the_files_that_its_planner_found(job: SmallJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.ask(2)
    planned = job.plan.checkpoint
    assert planned is not None
    assert planned.revision == job.plan.revision
    monkeypatch.delattr(module, "locate")
    assert steps_of(job.spec(), job.plan).checkpoint is planned


def test_a_resumed_job_locates_the_files_of_its_plan(job: SmallJob, checkpoint: Path) -> None:
    job.ask(2)
    stored = Plan.from_bytes(job.plan.to_bytes())
    assert stored.checkpoint is None
    steps = steps_of(job.spec(), stored)
    assert (steps.checkpoint.path, steps.checkpoint.revision) == (checkpoint, stored.revision)
    assert steps.spec.model.revision == stored.revision
