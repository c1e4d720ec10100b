"""Outputs of version 0.1.0 are read, proved, merged and gone on with by this version."""

from pathlib import Path

import pytest
from rich.console import Console
from support.older_outputs import BUCKET, ROWS, put_older_outputs

from magbatch.jobs.choice import Choice
from magbatch.jobs.compact import compact
from magbatch.jobs.opening import frozen_plan
from magbatch.jobs.retry import Retry, prepare
from magbatch.jobs.status import JobState, status
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.verify import verify
from magbatch.report.stored import stored_report
from magbatch.spec import load

FAILED = {"complete": 2, "compacted": 2, "retried": 0}


@pytest.fixture
def specs(s3_endpoint: str, tmp_path: Path) -> Path:
    put_older_outputs(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", FAILED)
def test_a_complete_output_verifies(specs: Path, name: str) -> None:
    found = verify(Ledger(f"s3://{BUCKET}/{name}"))
    assert found.problems == ()
    assert (found.complete, found.planned, found.answered, found.failed) == (
        True,
        ROWS,
        ROWS - FAILED[name],
        FAILED[name],
    )


@pytest.mark.parametrize("name", FAILED)
def test_its_report_and_its_status_are_read(specs: Path, name: str) -> None:
    found = status(f"s3://{BUCKET}/{name}")
    assert (found.state, found.answered, found.failed) == (JobState.COMPLETE, ROWS - FAILED[name], FAILED[name])
    report = stored_report(Ledger(f"s3://{BUCKET}/{name}"))
    assert (report.planned, report.totals.answered) == (ROWS, ROWS - FAILED[name])
    assert report.run.tokens > 0


def test_a_complete_output_is_merged(specs: Path) -> None:
    done = compact(f"s3://{BUCKET}/complete", 64_000_000, Console(quiet=True))
    assert (done.objects_before, done.objects) == (8, 2)
    assert verify(Ledger(f"s3://{BUCKET}/complete")).problems == ()


def test_its_dead_letters_can_be_asked_again(specs: Path) -> None:
    found = prepare(Ledger(f"s3://{BUCKET}/complete"), Choice(("engine_rejected",)), ["model.engine_args.script=[]"])
    assert isinstance(found, Retry)
    assert found.plan.rows == 2


@pytest.mark.parametrize("name", [*FAILED, "half"])
def test_its_spec_is_the_same_job(specs: Path, name: str) -> None:
    spec = load(specs / f"{name}.yaml")
    plan = frozen_plan(spec, Ledger(spec.output.path))
    assert plan is not None
    assert plan.rows == ROWS


def test_what_was_committed_of_an_interrupted_job_is_done(specs: Path) -> None:
    ledger = Ledger(f"s3://{BUCKET}/half")
    plan = ledger.plan()
    assert plan is not None
    assert ledger.done_counts(plan).tolist() == [4, 2, 0, 0, 0, 0]
    found = status(ledger.path)
    assert (found.state, found.done, found.exit_code) == (JobState.INTERRUPTED, 6, 3)
