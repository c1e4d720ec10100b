"""A run completes a job whose rows are committed, mends an interrupted end, and refuses what it cannot do."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.book import Breaking, Hand
from support.small_job import SmallJob

from magbatch.errors import ModelError, OutputError, SpecChangedError, StorageError
from magbatch.jobs.compact import compact
from magbatch.jobs.opening import frozen_plan, replace_unanswered_job
from magbatch.jobs.preview import preview
from magbatch.jobs.run import RunOutcome, run
from magbatch.jobs.status import status
from magbatch.ledger.finalise import renew
from magbatch.ledger.layout import PAGE, RECORD, REPORT, SPEC
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.verify import verify
from magbatch.plan.make import make_plan
from magbatch.report.stored import stored_report
from magbatch.spec import JobSpec
from magbatch.storage import open_store


def go(spec: JobSpec, limit: int | None = None) -> tuple[RunOutcome, str]:
    """Run a job whose rows are all committed, so no fleet is needed; returns the outcome and what the console said."""
    said = io.StringIO()
    return run(spec, Console(file=said, width=300), limit), said.getvalue()


def json_form(outcome: RunOutcome) -> Any:
    """The report as report.json holds it."""
    return json.loads(json.dumps(outcome.report.to_dict()))


def test_a_job_without_rows_is_complete(either_job: SmallJob) -> None:
    either_job.ask(0)
    outcome, _ = go(either_job.spec())
    assert (outcome.already, outcome.too_many_failed, outcome.samples) == (False, False, ())
    assert outcome.report.planned == 0
    assert json.loads(either_job.ledger.store.read("_magbatch/report.json")) == json_form(outcome)
    assert verify(either_job.ledger).problems == ()
    again, _ = go(either_job.spec())
    assert again.already
    assert json_form(again) == json_form(outcome)


def test_a_job_whose_rows_are_all_committed_only_ends(either_job: SmallJob) -> None:
    job = either_job
    job.ask(9, question=[None if row == 4 else f"What is {row}?" for row in range(9)], id=["same"] * 3 + list("defghi"))
    job.answer()
    asked = job.asked()
    outcome, said = go(job.spec())
    assert "9 of 9 rows are committed already" in said
    assert outcome.already is False
    totals = outcome.report.totals
    assert (totals.answered, totals.failed, totals.by_code) == (8, 1, {"missing_value": 1})
    assert totals.prompt_tokens == sum(row["prompt_tokens"] for row in job.records())
    assert outcome.report.duplicate_ids == 2
    assert outcome.report.lines()[0] == "8 of 9 rows answered, 1 failed"
    assert [sample.question for sample in outcome.samples] == ["What is 0?", "What is 1?", "What is 2?"]
    for sample, row in zip(outcome.samples, sorted(job.records(), key=lambda row: row["row_id"]), strict=False):
        assert (sample.reasoning, sample.answer) == (row["reasoning"], row["answer"])
    again, said = go(job.spec())
    assert (again.already, again.samples, said) == (True, (), "")
    assert json_form(again) == json_form(outcome)
    assert job.asked() == asked
    assert verify(job.ledger).problems == ()


def test_a_page_that_the_end_was_interrupted_before_is_written_by_the_next_run(either_job: SmallJob) -> None:
    job = either_job
    job.ask(3)
    job.answer()
    go(job.spec())
    page = job.ledger.store.read(PAGE)
    assert b"of 3 rows answered" in page
    job.ledger.store.delete(PAGE)
    assert list(verify(job.ledger).problems) == [
        f"{PAGE}: in the manifest, but missing; magbatch run SPEC writes it again"
    ]
    assert go(job.spec())[0].already
    assert b"of 3 rows answered" in job.ledger.store.read(PAGE)
    assert verify(job.ledger).verified


def test_a_report_that_an_interrupted_end_has_not_put_in_its_place_is_put_there_by_the_next_run(job: SmallJob) -> None:
    job.ask(3)
    job.answer()
    go(job.spec())
    _, plan, manifest = job.ledger.complete_job()
    report = json.loads(job.ledger.store.read(REPORT)) | {"currency": "EUR"}
    broken = Ledger(job.output)
    broken.store = Breaking(broken.store, 2, "before")  # the report is staged, the manifest renewed, and then it dies
    with pytest.raises(StorageError):
        renew(broken, job.spec(), plan, manifest, [], [], {REPORT: json.dumps(report).encode()})
    (problem,) = verify(job.ledger).problems
    assert (
        problem == f"{REPORT}: an interrupted run left it in _magbatch/staged/; magbatch run SPEC moves it to its place"
    )
    assert stored_report(job.ledger).to_dict()["currency"] == "EUR"
    assert go(job.spec())[0].already
    assert verify(job.ledger).verified
    assert list(job.ledger.store.list("_magbatch/staged/")) == []


def test_a_report_that_was_edited_is_not_believed(job: SmallJob) -> None:
    job.ask(3)
    job.answer()
    go(job.spec())
    job.put(f"output/{REPORT}", job.ledger.store.read(REPORT).replace(b'"planned": 3', b'"planned": 4'))
    assert not verify(job.ledger).verified
    outcome, _ = go(job.spec())
    assert (outcome.already, outcome.report.planned) == (True, 3)
    assert verify(job.ledger).verified


def test_an_end_that_was_interrupted_is_tidied(job: SmallJob) -> None:
    job.ask(3)
    job.answer()
    go(job.spec())
    stray = "results/00000000-zzz-0000.n1.parquet"
    job.put(f"output/{stray}", job.ledger.store.read(job.objects()[0]))
    assert go(job.spec())[0].already
    assert stray not in job.objects()
    assert verify(job.ledger).problems == ()


@pytest.mark.parametrize(("allowed", "too_many"), [(None, False), (2, False), (1, True), (0, True)])
def test_failed_rows_above_the_limit_are_too_many(job: SmallJob, allowed: int | None, too_many: bool) -> None:
    job.ask(3, question=[None, "What?", None])
    job.answer()
    spec = job.spec(limits={"max_failed_rows": allowed})  # may change from run to run
    assert go(spec)[0].too_many_failed is too_many
    assert go(spec)[0].too_many_failed is too_many


def test_another_spec_is_refused_and_nothing_is_touched(job: SmallJob) -> None:
    job.ask(3)
    job.answer()
    with pytest.raises(SpecChangedError, match=r"sampling\.seed: None -> 1"):
        go(job.spec(sampling={"seed": 1}))
    assert job.ledger.manifest() is None


def test_a_place_with_objects_of_somebody_else_is_refused(either_job: SmallJob) -> None:
    either_job.ask(3)
    either_job.put("output/errors/theirs.parquet", b"theirs")
    with pytest.raises(OutputError, match="output/errors: holds objects"):
        go(either_job.spec())
    assert [item.name for item in either_job.ledger.store.list("_magbatch/")] == []


@pytest.mark.parametrize("content", [None, b"{", b"{}", b"[]"])
def test_a_complete_job_without_its_report_gets_one_from_its_objects(job: SmallJob, content: bytes | None) -> None:
    job.ask(1)
    job.answer()
    go(job.spec())
    if content is None:
        job.ledger.store.delete("_magbatch/report.json")
    else:
        job.put("output/_magbatch/report.json", content)
    assert not verify(job.ledger).verified
    outcome, _ = go(job.spec())
    assert (outcome.already, outcome.report.totals.answered) == (True, 1)
    assert verify(job.ledger).verified


def test_a_wrong_model_stops_the_job_before_anything_is_written(job: SmallJob, tmp_path: Path) -> None:
    job.ask(3)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("params.json", "tekken.json"):
        shutil.copy(job.checkpoint / name, bare)
    model: dict[str, Any] = {"engine": "fake"}
    for wrong, message in [
        (job.spec(model=model | {"source": str(tmp_path / "nowhere")}), "no such directory"),
        (job.spec(model=model | {"source": str(bare)}, prompt={"system": "model"}), r"SYSTEM_PROMPT\.txt"),
    ]:
        with pytest.raises(ModelError, match=message):
            go(wrong)
        with pytest.raises(ModelError, match=message):
            preview(wrong)
    assert not Path(job.output).exists()


def test_rows_of_a_spec_that_was_replaced_are_no_answers_of_the_new_one(either_job: SmallJob) -> None:
    job = either_job
    job.ask(10)
    job.begin()
    cut_off = Hand(job.ledger, job.plan)  # a replica whose commits are refused for a while
    store = job.ledger.store
    for name in (RECORD, REPORT, PAGE):  # what its run has told of itself
        store.write(name, json.dumps({"version": 1, "at": 1.0, "done": 0, "spent": {"runs": 7}}).encode())
    mended = job.spec(sampling={"max_tokens": 90})
    lease = Lease(open_store(job.output, quick=True), print)
    with lease.acquire():
        replace_unanswered_job(mended, job.ledger, lease, Console(file=io.StringIO()))
        plan = job.ledger.begin(mended, make_plan(mended))
    assert [name for name in (RECORD, REPORT, PAGE) if job.ledger.load(name) is not None] == []
    assert status(job.output).run is None

    first = cut_off.answered(0, 0, 1, 2, 3)
    assert frozen_plan(job.spec(sampling={"max_tokens": 80}), job.ledger) is None, "they keep the place for no spec"
    assert status(job.output).done == 0
    assert job.ledger.done_rows(0) == job.ledger.look_up([0])(0) == frozenset()
    found = verify(job.ledger)
    assert (found.answered, found.open, found.problems) == (0, 10, ())
    assert [note for note in found.notes if str(first) in note] != []

    job.set("sampling", max_tokens=90)
    job.plan = plan
    job.answer()
    late = cut_off.failed(1, 0, 1)
    outcome, said = go(mended)
    assert "10 of 10 rows are committed already" in said
    assert (outcome.report.totals.answered, outcome.too_many_failed) == (10, False)
    manifest = job.ledger.manifest()
    assert manifest is not None
    assert {first, late}.isdisjoint(entry.name for entry in manifest.objects)
    assert sorted(str(entry.name) for entry in manifest.objects) == sorted(job.objects() + job.objects("errors"))
    assert "i" not in {row["answer"] for row in job.records()}
    assert sorted(set(job.done())) == sorted(job.row_ids())
    assert verify(job.ledger).verified

    last = cut_off.answered(2, 0)
    assert [line for line in verify(job.ledger).problems if str(last) in line] != []
    go(mended)
    assert verify(job.ledger).verified


def test_each_object_is_of_the_plan_of_its_job_and_each_plan_that_begins_has_an_id_of_its_own(job: SmallJob) -> None:
    job.ask(10, question=[None if row == 4 else f"What is {row}?" for row in range(10)])
    job.answer()
    go(job.spec())
    compact(job.output, 10_000_000, Console(file=io.StringIO()))
    assert job.plan.id is not None
    names = [*job.objects(), *job.objects("errors")]
    assert [name for name in names if f"p{job.plan.id}-" not in name] == []
    assert verify(job.ledger).verified
    plans = [job.ledger.begin(job.spec(), job.plan).id for _ in range(2)]
    assert len({job.plan.id, *plans}) == 3, "a plan that takes the place of another has an id of its own"
    assert job.ledger.plan_id == plans[-1]


def test_a_plan_never_stands_with_the_spec_of_another(job: SmallJob) -> None:
    job.ask(10)
    job.begin()
    mended = job.spec(sampling={"max_tokens": 9})

    class Cut(Exception):
        pass

    ledger, write = job.ledger, job.ledger.store.write

    def killed(name: str, data: bytes) -> None:
        if name == SPEC:
            raise Cut
        write(name, data)

    ledger.store.write = killed  # type: ignore[method-assign]
    with pytest.raises(Cut):
        ledger.begin(mended, make_plan(mended))
    assert Ledger(job.output).spec() is None
