"""A retry asks the same rows by the same ids, and merges its answers without losing a row."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from support.book import (
    Book,
    Breaking,
    Hand,
    ask_again,
    carry_out,
    complete_with_failures,
    outcome,
    rewrite_manifest,
    stored,
)
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, LeaseError, OutputError, SpecChangedError, SpecError, Step, StorageError
from magbatch.jobs.choice import Choice
from magbatch.jobs.compact import merge_objects
from magbatch.jobs.retry import Retry, drop, merge, prepare, retry
from magbatch.ledger.layout import PAGE, REPORT, RETRIES
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.tidy import tidy
from magbatch.ledger.verify import verify
from magbatch.pipeline.write import ObjectWriter
from magbatch.rows import DeadLetter
from magbatch.schema import ERRORS, RESULTS, ObjectName

QUIET = Console(file=io.StringIO())


@pytest.fixture
def book(job: SmallJob) -> Book:
    book = Book(job)
    complete_with_failures(book)
    return book


def expected(book: Book, **changed: str) -> dict[str, str]:
    """Outcome of a book after `complete`, with other outcomes for rows named `s<shard>r<row>`."""
    found = book.expect("iiII", "ittI".replace("I", "i"), "IIII")
    found |= {book.ids[1][row]: "truncated: t" for row in (1, 2)}
    return found | {book.ids[int(name[1])][int(name[3])]: text for name, text in changed.items()}


def begin(book: Book, choice: Choice | None = None, *overrides: str) -> Retry:
    """A retry as a killed command leaves it: nothing of it is answered."""
    found = prepare(book.ledger, choice or Choice(), list(overrides))
    assert isinstance(found, Retry)
    found.output().begin(found.spec, found.plan)
    return found


def test_a_retry_asks_the_same_rows_by_the_same_ids(book: Book) -> None:
    found = prepare(book.ledger, Choice(), ["sampling.max_tokens=800", "input.fetch_timeout_s=1"])
    assert isinstance(found, Retry)
    assert list(found.plan.row_ids()) == [*book.ids[0][2:], *book.ids[2]]
    assert found.plan.columns == book.plan.columns
    segment = found.plan.shard(0).segments[0]
    planned = book.plan.shard(0).segments[0]
    assert (segment.path, segment.size, segment.tag, segment.start) == (planned.path, planned.size, planned.tag, 2)
    assert found.spec.sampling.max_tokens == 800
    assert found.spec.output.path == f"{book.job.output}/{RETRIES}/0001"
    assert found.spec.input.path == book.spec.input.path
    assert list(book.ledger.store.list(RETRIES)) == []  # nothing is written yet


@pytest.mark.parametrize(
    "item", ["model.source=x", "prompt.system=x", "input.carry=[question]", "output.path=x", "name=x", "model.engine=x"]
)
def test_what_makes_a_row_what_it_is_may_not_change(book: Book, item: str) -> None:
    with pytest.raises(SpecError, match=f"{item.partition('=')[0]} may not change in a retry"):
        retry(book.job.output, Choice(), [item], QUIET)
    assert list(book.ledger.store.list(RETRIES)) == []


def test_nothing_to_retry_is_no_error(book: Book) -> None:
    before = book.ledger.manifest()
    found = retry(book.job.output, Choice.of(["engine_killer"], None), [], QUIET)
    assert (found.rows, found.chosen) == (0, "dead letters with the code engine_killer")
    assert (found.totals.answered, found.totals.failed) == (6, 6)
    assert book.ledger.manifest() == before


def test_an_open_job_is_not_retried(job: SmallJob) -> None:
    Book(job)
    with pytest.raises(OutputError, match="not complete"):
        retry(job.output, Choice(), [], QUIET)


def test_files_that_could_not_be_read_stay_dead_letters(job: SmallJob) -> None:
    job.put("input/b.parquet", b"no Parquet")
    job.set("input", on_bad_file="dead_letter")
    book = Book(job, rows=3)
    book.answered(0, 0, 1)
    book.failed(0, 2, 3, code=ErrorCode.FILE_UNREADABLE)
    book.finalise()
    done = ask_again(book.ledger, Hand.answer_all)
    assert (done.rows, done.answered, done.whole_files) == (1, 1, 1)
    assert ask_again(book.ledger, Hand.answer_all).whole_files == 1
    assert book.outcome() == book.expect("iiiI") | {book.ids[0][2]: "again"}
    book.check_manifest()


# What comes of it


def test_an_answer_takes_the_place_of_its_dead_letter(either_job: SmallJob) -> None:
    book = Book(either_job)
    complete_with_failures(book)
    untouched = {item.name: item.tag for item in book.ledger.store.list(RESULTS)}

    def answer(hand: Hand) -> None:
        """Answer both rows of the first shard, and two rows of the other shard."""
        hand.answered(0, 0, 1, 2, 3, by="again")
        hand.failed(1, 0, 1, by="anew", code=ErrorCode.ENGINE_KILLER)

    letters = book.job.objects(ERRORS)
    done = ask_again(book.ledger, answer)
    assert (done.rows, done.answered, done.failed) == (6, 4, {"engine_killer": 2})
    assert (done.totals.answered, done.totals.failed) == (10, 2)
    assert book.outcome() == expected(book, s0r2="again", s0r3="again", s2r0="again", s2r1="again")
    book.check_manifest()
    moved = [item.name.removeprefix("_magbatch/superseded/") for item in book.ledger.store.list("_magbatch/superseded")]
    assert moved == letters
    now = {item.name: item.tag for item in book.ledger.store.list(RESULTS)}
    assert untouched.items() < now.items()  # no object is edited in place
    assert list(book.ledger.store.list(RETRIES)) == []
    (record,) = stored(book.ledger).retries
    assert (record.chosen, record.rows, record.answered) == ("dead letters", 6, 4)
    assert b"<b>10</b>of 12 rows answered" in book.ledger.store.read(PAGE)
    again = ask_again(book.ledger, Hand.answer_all, Choice.of(["row_timeout"], None), ("sampling.max_tokens=800",))
    assert (again.rows, again.answered, again.totals.failed) == (2, 2, 0)
    assert stored(book.ledger).retries[1].set == ("sampling.max_tokens=800",)
    assert [ObjectName.of(name).rows for name in book.job.objects(ERRORS)] == [0]  # a dataset that opens
    book.check_manifest()
    assert ask_again(book.ledger, Hand.answer_all).rows == 0


def test_a_truncated_answer_is_replaced_by_one_that_is_not(book: Book) -> None:
    def answer(hand: Hand) -> None:
        hand.answered(0, 0, by="t2", truncated=True)
        hand.answered(0, 1, by="whole")

    truncated = Choice.of([], "truncated")
    done = ask_again(book.ledger, answer, truncated)
    assert (done.rows, done.answered, done.truncated, done.totals.failed) == (2, 1, 1, 6)
    assert book.outcome() == expected(book, s1r2="whole")
    book.check_manifest()
    done = ask_again(book.ledger, lambda hand: hand.failed(0, 0), truncated)  # worse than what is there
    assert (done.rows, done.answered, done.failed) == (1, 0, {"missing_value": 1})
    assert book.outcome() == expected(book, s1r2="whole")
    assert done.totals.by_status == {"complete": 5, "truncated": 1}
    book.check_manifest()


def test_a_dead_letter_may_become_a_truncated_answer(book: Book) -> None:
    done = ask_again(
        book.ledger, lambda hand: hand.answer_all("t3", truncated=True), Choice.of(["missing_value"], None)
    )
    assert (done.rows, done.answered, done.truncated) == (1, 1, 0)
    assert book.outcome() == expected(book, s0r2="truncated: t3")
    book.check_manifest()


def test_a_retry_may_ask_for_another_number_of_samples(book: Book) -> None:
    ask_again(book.ledger, Hand.answer_all, overrides=("sampling.n=3",))
    book.check_manifest()
    assert len(book.job.records()) == 6 + 6 * 3


def test_retries_and_merges_follow_each_other(job: SmallJob) -> None:
    book = Book(job)
    complete_with_failures(book)
    merge_objects(book.ledger, 1 << 28, lambda: None)
    ask_again(book.ledger, Hand.answer_all, Choice.of(["row_timeout"], None))
    after = expected(book, s0r3="again", s2r0="again", s2r1="again", s2r2="again", s2r3="again")
    assert book.outcome() == after
    assert len(book.all_objects()) == 3  # the answers, what is left of the dead letters, and the new answers
    book.check_manifest()
    merge_objects(book.ledger, 1 << 28, lambda: None)
    assert len(book.all_objects()) == 2
    book.check_manifest()
    ask_again(book.ledger, Hand.answer_all, Choice.of([], "truncated"))
    assert book.outcome() == after | {book.ids[1][1]: "again", book.ids[1][2]: "again"}
    book.check_manifest()
    merge_objects(book.ledger, 1 << 28, lambda: None)
    assert book.outcome() == after | {book.ids[1][1]: "again", book.ids[1][2]: "again"}
    book.check_manifest()


def test_right_answers_are_counted_anew(job: SmallJob) -> None:
    job.set("input", columns={"id": "id", "prompt": "question", "expected": "id"})
    book = Book(job, rows=4)
    book.answered(0, 0, by=f"user-{book.ids[0][0]}")
    book.answered(0, 1)
    book.failed(0, 2, 3)
    book.finalise()
    before = stored(book.ledger).totals
    done = ask_again(book.ledger, lambda hand: hand.answer_all(f"user-{book.ids[0][3]}"))
    assert (before.graded, before.right) == (2, 1)
    assert (done.totals.graded, done.totals.right) == (4, 2)
    book.check_manifest()
    rewrite_manifest(book.ledger, totals=replace(stored(book.ledger).totals, right=3))
    assert list(verify(book.ledger).problems) == ["_magbatch/manifest.json says right 3, the objects give 2"]


def test_ids_of_rows_that_can_be_read_now_are_counted(job: SmallJob) -> None:
    """A row that could not be read has no user id; read at last, it has one, which another row has too."""
    book = Book(job, rows=4)
    book.answered(0, 0, 1)
    nothing = pa.table({"id": pa.array([None], pa.string())})
    unread = [DeadLetter(row_id, Step.READ, ErrorCode.ROW_UNREADABLE, "damaged") for row_id in book.ids[0][2:]]
    ObjectWriter(book.ledger.store, nothing, {}, "tiny", 0).errors(unread)
    book.finalise()

    def answer(hand: Hand) -> None:
        same = pa.table({"id": [f"user-{book.ids[0][0]}"]})
        hand.answered(
            0, 0, 1, writer=ObjectWriter(hand.ledger.store, same, dict.fromkeys(hand.ids[0], 0), "tiny", 0), by="read"
        )

    ask_again(book.ledger, answer)
    assert json.loads(book.ledger.store.read(REPORT))["duplicate_ids"] == 2
    assert book.outcome() == book.expect("iirr") | dict.fromkeys(book.ids[0][2:], "read")
    book.check_manifest()


def test_too_many_dead_letters_are_still_too_many(book: Book) -> None:
    few = ("limits.max_failed_rows=5",)
    assert not ask_again(book.ledger, Hand.answer_all, Choice.of(["missing_value"], None), few).too_many_failed

    def fail(hand: Hand) -> None:
        for shard, ids in enumerate(hand.ids):
            hand.failed(shard, *range(len(ids)))

    assert ask_again(book.ledger, fail, overrides=("limits.max_failed_rows=4",)).too_many_failed


# Interrupted


def test_a_retry_that_was_begun_is_gone_on_with(book: Book) -> None:
    found = begin(book)
    Hand(found.output(), found.plan).answered(0, 1, by="early")
    again = prepare(book.ledger, Choice(), ["replicas.max=4"])  # changes no answer, but the shards of a new plan
    assert isinstance(again, Retry)
    assert again.plan.table.equals(found.plan.table)
    assert again.output().done_rows(0) == {book.ids[0][3]}


def test_a_retry_that_is_all_answered_needs_no_fleet(book: Book) -> None:
    found = begin(book)
    Hand(found.output(), found.plan).answer_all("by the fleet")
    done = retry(book.job.output, Choice(), [], QUIET)
    assert (done.rows, done.answered, done.totals.failed) == (6, 6, 0)
    book.check_manifest()
    assert "by the fleet" in book.outcome().values()
    report = json.loads(book.ledger.store.read(REPORT))
    assert (report["totals"]["answered"], report["run"]["rows"]) == (12, 0)


def test_another_retry_waits_until_the_first_is_finished_or_dropped(book: Book) -> None:
    begun = begin(book, None, "sampling.max_tokens=800")
    late = Hand(begun.output(), begun.plan)
    late.answered(0, 0, by="dropped")
    with pytest.raises(SpecChangedError) as refused:
        retry(book.job.output, Choice.of([], "truncated"), ["sampling.max_tokens=900"], QUIET)
    lines = [line.strip() for line in str(refused.value).splitlines()]
    assert lines[1:3] == [
        "sampling.max_tokens: 800 -> 900", "the rows: 6 then, 2 rows whose reasoning was truncated now",
    ]  # fmt: skip
    assert lines[-1].endswith(f"magbatch retry {book.job.output} --drop")
    assert drop(book.job.output, QUIET) is True
    assert drop(book.job.output, QUIET) is False
    late.answered(0, 0, by="a zombie")
    assert ask_again(book.ledger, Hand.answer_all).answered == 6
    assert set(book.outcome().values()) == {"i", "truncated: t", "again"}
    assert list(book.ledger.store.list(RETRIES)) == []
    book.check_manifest()


WAYS = [(merged, moment) for merged in (False, True) for moment in ("before", "half", "after")]


@pytest.mark.parametrize(("first", "merged", "moment"), [(first, *way) for first, way in enumerate(WAYS)])
@pytest.mark.parametrize("every", [len(WAYS), pytest.param(1, marks=pytest.mark.fire)])
def test_a_retry_that_is_interrupted_anywhere_can_be_gone_on_with(
    job: SmallJob, tmp_path: Path, first: int, merged: bool, moment: str, every: int
) -> None:
    """The short series interrupts each change of the store in one of the ways; `-m fire` in all of them."""
    book = Book(job)
    complete_with_failures(book)
    if merged:
        merge_objects(book.ledger, 1 << 28, lambda: None)
    choice = Choice.of(["row_timeout"], None)
    begun = begin(book, choice)
    Hand(begun.output(), begun.plan).answer_all()
    assert carry_out(begun.output(), begun.spec, begun.plan) == []
    old, new = book.outcome(), expected(book, s0r3="again", **{f"s2r{row}": "again" for row in range(4)})
    pristine = tmp_path / "pristine"
    shutil.copytree(job.output, pristine)
    for at in range(first % every, 100, every):
        shutil.rmtree(job.output)
        shutil.copytree(pristine, job.output)
        broken = Ledger(job.output)
        broken.store = Breaking(broken.store, at, moment)
        try:
            ask_again(broken, Hand.answer_all, choice)
        except StorageError:
            names = [str(entry.name) for entry in stored(book.ledger).objects]
            assert outcome(book.ledger.store, names) in (old, new), f"broken at change {at}"
            tidy(Ledger(job.output), lambda: None)  # what any next command begins with
            book.check_manifest()
            ask_again(Ledger(job.output), Hand.answer_all, choice)
        else:
            break
        assert book.outcome() == new, f"broken at change {at}"
        assert list(book.ledger.store.list(RETRIES)) == []
        book.check_manifest()
    assert at > 10, "a retry has more steps than that: this test has not seen them"


def test_a_retry_whose_lease_is_lost_changes_nothing(book: Book) -> None:
    def lost() -> None:
        raise LeaseError("lost")

    found = begin(book)
    Hand(found.output(), found.plan).answer_all()
    carry_out(found.output(), found.spec, found.plan)
    before = book.ledger.manifest()
    with pytest.raises(LeaseError):
        merge(found, lost)
    assert book.ledger.manifest() == before
    tidy(book.ledger, lambda: None)
    assert book.outcome() == expected(book)


@pytest.mark.parametrize("kind", [RESULTS, ERRORS])
def test_a_damaged_job_is_not_retried(book: Book, kind: str) -> None:
    before = book.ledger.manifest()
    name = book.job.objects(ERRORS)[-1]
    book.ledger.store.delete(name)
    if kind == RESULTS:  # an object of the right name, but of other rows
        book.ledger.store.write(name, book.ledger.store.read(book.job.objects(ERRORS)[0]))
    with pytest.raises(OutputError, match="magbatch verify"):
        ask_again(book.ledger, Hand.answer_all)
    assert book.ledger.manifest() == before


def test_a_job_of_before_some_sums_were_kept_can_be_asked_again_and_stays_right(book: Book) -> None:
    """Totals that the manifest does not hold are counted from the objects."""
    store = book.ledger.store
    new = {"by_latency", "by_reasoning", "by_answer", "latency_ms", "squared_tokens"}
    rewrite_manifest(book.ledger, version=1, unknown_sums=frozenset(new))
    report = json.loads(store.read(REPORT))
    for name in ("spent", "history", "replicas", "slowest", "cost", "currency", "letters"):
        report.pop(name, None)
    report["totals"] = {name: value for name, value in report["totals"].items() if name not in new}
    store.write(REPORT, json.dumps(report).encode())
    done = ask_again(book.ledger, Hand.answer_all, Choice.of([], None), ("metrics.enabled=false",))
    assert (done.answered, done.totals.failed) == (6, 0)
    assert stored(book.ledger).unknown_sums == frozenset()
    assert verify(book.ledger).problems == ()


def test_the_report_tells_once_of_a_dead_letter_whose_object_was_replaced(either_job: SmallJob) -> None:
    """The object that a retry replaces is still there while its report is made."""
    book = Book(either_job)
    book.answered(0, 0, 1)
    book.failed(0, 2, 3)
    book.failed(1, 0, 1, 2, 3)
    book.answered(2, 0, 1, 2, 3)
    assert book.finalise() == []

    def answer_one(hand: Hand) -> None:
        first, *others = [(shard, row) for shard, ids in enumerate(hand.ids) for row in range(len(ids))]
        hand.answered(*first)
        for shard, row in others:
            hand.failed(shard, row)

    assert ask_again(book.ledger, answer_one).answered == 1
    letters = [one["row_id"] for one in json.loads(book.ledger.store.read(REPORT))["letters"]]
    assert letters == [book.ids[0][3], *book.ids[1][:2]]
