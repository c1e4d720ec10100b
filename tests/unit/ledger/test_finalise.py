"""The end of a job: every row is kept once, the manifest comes last, and an interrupted end can be resumed."""

import io
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.book import Book, Breaking, carry_out, whole_report
from support.small_job import SmallJob

from magbatch.errors import StorageError
from magbatch.ledger.finalise import finalise
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.tidy import tidy
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESULTS, errors_schema, results_schema
from magbatch.spec import JobSpec
from magbatch.totals import Totals


def test_a_complete_job_gets_its_manifest_last(either_book: Book) -> None:
    book = either_book
    book.complete()
    at_report: list[tuple[Totals, bool]] = []
    seen: list[tuple[str, int]] = []

    def report(totals: Totals) -> dict[str, bytes]:
        at_report.append((totals, book.ledger.manifest() is None))
        return whole_report(book.ledger, book.spec, book.plan, totals)

    totals, missing = finalise(
        book.ledger,
        book.spec,
        book.plan,
        lambda kind, table: seen.append((kind, len(table.column("id")))),
        report,
        lambda: None,
    )
    assert missing == []
    assert at_report == [(totals, True)]
    assert sorted(seen) == [(ERRORS, 1), (RESULTS, 2), (RESULTS, 2), (RESULTS, 3), (RESULTS, 4)]
    assert (totals.answered, totals.failed, totals.records) == (11, 1, 11)
    assert (totals.prompt_tokens, totals.cached_tokens) == (77, 33)
    assert (totals.reasoning_tokens, totals.answer_tokens) == (55, 22)
    assert totals.by_code == {"missing_value": 1}
    assert totals.by_status == {"complete": 11}
    assert book.outcome() == book.expect("iiii", "iiiI", "iiii")
    book.check_manifest()


def test_samples_count_their_prompt_once(job: SmallJob) -> None:
    book = Book(job, samples=3)
    book.complete()
    totals, missing = finalise(
        book.ledger,
        book.spec,
        book.plan,
        lambda kind, table: None,
        lambda totals: whole_report(book.ledger, book.spec, book.plan, totals),
        lambda: None,
    )
    assert missing == []
    assert (totals.answered, totals.records, totals.prompt_tokens) == (11, 33, 77)
    assert (totals.reasoning_tokens, totals.answer_tokens) == (165, 66)
    book.check_manifest()


def test_a_row_in_two_objects_is_kept_once(either_book: Book) -> None:
    """The rule: an answer before a dead letter, then the attempt that began first."""
    book = either_book
    book.answered(0, 0, 1, 2, by="a")
    superseded = [
        book.answered(0, 1, 2, 3, by="b"),  # partly repeated: a's rows stay a's
        book.failed(1, 0, 1, 2, by="c"),
    ]
    book.answered(1, 1, 2, 3, by="d")  # answers what was a dead letter
    superseded += [
        book.answered(1, 1, 2, 3, by="e"),  # wholly repeated
        book.failed(2, 0, 1, by="f"),
        book.failed(2, 1, 2, by="g"),
    ]
    book.answered(2, 0, by="h")
    book.answered(2, 3, by="i")
    assert book.finalise() == []
    assert book.outcome() == book.expect("aaab", "Cddd", "hFGi")
    book.check_manifest()
    moved = [
        item.name for kind in (RESULTS, ERRORS) for item in book.ledger.store.list(f"_magbatch/superseded/{kind}/")
    ]
    assert sorted(moved) == sorted(f"_magbatch/superseded/{name}" for name in superseded)  # moved, not deleted


def test_samples_of_a_row_stay_together(job: SmallJob) -> None:
    book = Book(job, rows=4, samples=3)
    book.answered(0, 0, 1, by="a")
    book.answered(0, 1, 2, 3, by="b")
    assert book.finalise() == []
    assert book.outcome() == book.expect("aabb")
    assert sorted((row["row_id"], row["sample"]) for row in job.records()) == [
        (row_id, sample) for row_id in book.ids[0] for sample in range(3)
    ]
    book.check_manifest()


def test_missing_rows_leave_everything_as_it_was(either_book: Book) -> None:
    book = either_book
    book.answered(0, 0, 1, 2)
    book.answered(0, 1, 2, 3)  # would be rewritten
    book.answered(1, 0, 1, 3)
    before = book.all_objects()
    reports: list[Totals] = []
    missing = finalise(book.ledger, book.spec, book.plan, lambda kind, table: None, reports.append, lambda: None)[1]
    assert missing == [book.ids[1][2], *book.ids[2]]
    assert reports == []
    assert book.ledger.manifest() is None
    assert book.all_objects() == before


def test_a_job_without_rows_leaves_datasets_that_can_be_opened(either_job: SmallJob) -> None:
    book = Book(either_job, rows=0)
    assert book.finalise() == []
    carry = pa.schema([("id", pa.string())])
    for kind, schema in ((RESULTS, results_schema(carry)), (ERRORS, errors_schema(carry))):
        (name,) = either_job.objects(kind)
        table = pq.read_table(io.BytesIO(book.ledger.store.read(name)))
        assert table.num_rows == 0
        assert table.schema.equals(schema, check_metadata=True)
    book.check_manifest()


@pytest.mark.parametrize("kind", [RESULTS, ERRORS])
def test_a_job_of_one_kind_of_rows_has_both_datasets(job: SmallJob, kind: str) -> None:
    book = Book(job, rows=2)
    (book.answered if kind == RESULTS else book.failed)(0, 0, 1)
    assert book.finalise() == []
    assert [len(job.objects(one)) for one in (RESULTS, ERRORS)] == [1, 1]
    assert len(job.records(kind)) == 2
    book.check_manifest()


def finish(ledger: Ledger, spec: JobSpec, plan: Plan) -> None:
    """Finish a job whose rows are all committed, as `run` does."""
    if ledger.manifest() is not None:
        tidy(ledger, lambda: None)
    else:
        assert ledger.done_counts(plan).tolist() == plan.shard_sizes.tolist()
        assert carry_out(ledger, spec, plan) == []


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_an_end_that_is_interrupted_anywhere_can_be_gone_on_with(job: SmallJob, tmp_path: Path, moment: str) -> None:
    book = Book(job)
    book.answered(0, 0, 1, 2, by="a")
    book.answered(0, 1, 2, 3, by="b")
    book.failed(1, 0, 1, 2, by="c")
    book.answered(1, 1, 3, by="d")
    book.answered(1, 1, 3, by="e")
    book.answered(2, 0, 1, 2, 3, by="f")
    job.put("output/_magbatch/tmp/left-by-a-killed-writer", b"half")
    pristine = tmp_path / "pristine"
    shutil.copytree(job.output, pristine)
    for at in range(100):
        shutil.rmtree(job.output)
        shutil.copytree(pristine, job.output)
        broken = Ledger(job.output)
        broken.store = Breaking(broken.store, at, moment)
        try:
            finish(broken, book.spec, book.plan)
        except StorageError:
            finish(Ledger(job.output), book.spec, book.plan)
            finish(Ledger(job.output), book.spec, book.plan)  # once more changes nothing
        else:
            break
        assert book.outcome() == book.expect("aaab", "CdCd", "ffff"), f"broken at change {at}"
        book.check_manifest()
        assert list(book.ledger.store.list("_magbatch/tmp/")) == []
    assert at > 7, "the end has more steps than that: this test has not seen them"


@pytest.mark.parametrize("seed", range(30))
def test_whatever_attempts_commit_the_end_has_every_row_once(job: SmallJob, seed: int) -> None:
    """Any number of attempts, each finishing any part of its shard, in any order, as answers or dead letters."""
    draw = random.Random(seed)
    book = Book(job, rows=draw.choice([1, 5, 11]), shard_rows=draw.choice([1, 4, 20]))
    expected: dict[str, str] = {}
    for number in range(draw.randint(1, 12)):
        shard = draw.randrange(len(book.ids))
        writer = book.writer(shard)
        done: set[int] = set()
        for _ in range(draw.randint(1, 3)):  # an attempt finishes a row once, whatever others do
            open_rows = [row for row in range(len(book.ids[shard])) if row not in done]
            rows = draw.sample(open_rows, draw.randint(0, len(open_rows)))
            if not rows:
                continue
            done.update(rows)
            by = f"attempt {number:02d}"
            if draw.random() < 0.6:
                book.answered(shard, *rows, by=by, writer=writer)
            else:
                book.failed(shard, *rows, by=by, writer=writer)
                by = f"failed: {by}"
            for row in rows:
                row_id = book.ids[shard][row]
                held = expected.get(row_id, by)
                better = held.startswith("failed") and not by.startswith("failed")
                expected[row_id] = by if better else held
    everything = [row_id for ids in book.ids for row_id in ids]
    counts = [sum(row_id in expected for row_id in ids) for ids in book.ids]
    assert book.ledger.done_counts(book.plan).tolist() == counts
    missing = [row_id for row_id in everything if row_id not in expected]
    before = book.all_objects()
    assert book.finalise() == missing
    if missing:
        assert book.all_objects() == before
        for shard, ids in enumerate(book.ids):
            rows = [row for row, row_id in enumerate(ids) if row_id in missing]
            if rows:
                book.answered(shard, *rows, by="the last")
        expected |= dict.fromkeys(missing, "the last")
        assert book.finalise() == []
    assert book.outcome() == expected
    book.check_manifest()
