"""An output that holds answers keeps its job; one without answers gives its place to a corrected spec."""

import io
import json

import pytest
from rich.console import Console
from support.small_job import SmallJob

from magbatch.errors import SpecChangedError
from magbatch.jobs.opening import frozen_plan, replace_unanswered_job
from magbatch.jobs.preview import preview
from magbatch.ledger.layout import RECORD
from magbatch.ledger.lease import Lease
from magbatch.plan.make import make_plan
from magbatch.spec import differences
from magbatch.storage import open_store


def test_a_spec_that_was_mended_takes_the_place_of_one_that_answered_nothing(either_job: SmallJob) -> None:
    job = either_job
    job.ask(10)
    job.begin()
    mended = job.spec(sampling={"max_tokens": 9}, input={"shard_rows": 5})
    assert preview(mended).output_state.state == "replaced"
    ledger, said = job.ledger, io.StringIO()
    lease = Lease(open_store(job.output, quick=True), print)
    with lease.acquire():
        assert frozen_plan(mended, ledger) is None
        replace_unanswered_job(mended, ledger, lease, Console(file=said, width=200))
        ledger.begin(mended, make_plan(mended))
    assert "this job replaces it" in said.getvalue()
    assert differences(ledger.spec() or job.spec(), mended) == []
    plan = ledger.plan()
    assert plan is not None
    assert plan.num_shards == 2
    assert preview(mended).output_state.state == "begun"


def test_one_answer_keeps_the_place(job: SmallJob) -> None:
    job.ask(10)
    job.answer()
    for name in job.objects()[1:]:
        job.ledger.store.delete(name)
    with pytest.raises(SpecChangedError):
        frozen_plan(job.spec(sampling={"max_tokens": 9}), job.ledger)


def test_an_answer_that_a_late_listing_does_not_show_keeps_the_place(job: SmallJob) -> None:
    job.ask(10)
    job.begin()
    job.ledger.store.write(RECORD, json.dumps({"version": 1, "at": 0.0, "done": 3}).encode())
    with pytest.raises(SpecChangedError):
        frozen_plan(job.spec(sampling={"max_tokens": 9}), job.ledger)


def test_what_replicas_of_a_run_that_was_killed_still_commit_keeps_the_place(job: SmallJob) -> None:
    job.ask(10)
    job.begin()
    mended, said = job.spec(sampling={"max_tokens": 9}), io.StringIO()
    lease = Lease(open_store(job.output, quick=True), print)
    with lease.acquire():
        lease.inherited = True  # as if its holder had been killed
        replace_unanswered_job(mended, job.ledger, lease, Console(file=said, width=200), wait_s=0.01)
        assert "waiting 0 s for late commits of its replicas" in said.getvalue()
        job.answer()
        with pytest.raises(SpecChangedError):
            replace_unanswered_job(mended, job.ledger, lease, Console(file=said), wait_s=0.01)
