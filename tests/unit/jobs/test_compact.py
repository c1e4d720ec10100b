import io
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from support.book import Book, Breaking, carry_out, outcome, rewrite_manifest, stored
from support.small_job import SmallJob

from magbatch.errors import LeaseError, OutputError, StorageError
from magbatch.jobs.compact import CompactOutcome, compact, merge_objects
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.tidy import tidy
from magbatch.ledger.verify import verify
from magbatch.schema import ERRORS, RESULTS, ObjectName

LARGE = 1 << 28
SMALL = 30_000  # bytes: two or three shards of what these tests write


def written(job: SmallJob) -> Book:
    """Complete job, with a dead letter in every other shard of 3 rows, and some shards in two objects."""
    book = Book(job, rows=24, shard_rows=3)
    for shard in range(8):
        writer = book.writer(shard)
        text = random.Random(shard).randbytes(2000).hex()  # of a size that compression does not take away
        book.answered(shard, 1, by=text, writer=writer)
        if shard % 2:
            book.answered(shard, 0, 2, by=text, writer=writer)
        else:
            book.failed(shard, 0, 2, writer=writer)
    assert book.finalise() == []
    return book


@pytest.fixture
def book(job: SmallJob) -> Book:
    return written(job)


def go(book: Book, target_bytes: int = LARGE) -> CompactOutcome:
    return compact(book.job.output, target_bytes, Console(file=io.StringIO()))


def parts(book: Book, kind: str) -> list[ObjectName]:
    return [ObjectName.of(name) for name in book.job.objects(kind)]


def test_objects_become_one_of_each_kind_and_every_row_stays(either_job: SmallJob) -> None:
    book = written(either_job)
    before, objects = book.outcome(), book.all_objects()
    manifest = book.ledger.manifest()
    done = go(book)
    assert (done.job, done.objects_before, done.objects, done.merged) == ("small", len(objects), 2, len(objects))
    assert done.bytes < done.bytes_before
    assert book.outcome() == before
    book.check_manifest()
    (results,), (errors,) = parts(book, RESULTS), parts(book, ERRORS)
    assert results.shards == errors.shards == range(8)
    assert list(book.ledger.store.list("_magbatch/superseded/")) == []  # their rows live on: they need not be kept
    table = pq.read_table(io.BytesIO(book.ledger.store.read(str(results))))
    shard_of = {row_id: shard for shard, ids in enumerate(book.ids) for row_id in ids}
    shards = [shard_of[row_id] for row_id in table.column("row_id").to_pylist()]
    assert shards == sorted(shards)  # as the plan has them
    now = book.ledger.manifest()
    assert manifest is not None
    assert now is not None
    assert now == replace(manifest, objects=now.objects, compacted_to_bytes=LARGE)


def test_what_is_merged_already_is_left_alone(book: Book) -> None:
    go(book, SMALL)
    before = {item.name: item.tag for item in book.ledger.store.list("")}
    done = go(book, SMALL)
    assert (done.merged, done.objects, done.bytes) == (0, done.objects_before, done.bytes_before)
    assert {
        item.name: item.tag for item in book.ledger.store.list("") if "lease" not in item.name
    }.items() <= before.items()
    assert go(book, LARGE).objects == 2  # a larger target merges on
    book.check_manifest()
    assert go(book, SMALL).merged == 0  # and nothing is cut


def test_what_is_merged_already_is_not_even_read(book: Book) -> None:
    go(book, LARGE)
    for name in book.all_objects():
        book.ledger.store.write(name, b"nobody can read this")
    assert go(book, LARGE).merged == 0


def test_objects_grow_to_the_target_and_both_kinds_are_cut_at_the_same_shards(book: Book) -> None:
    before = book.outcome()
    go(book, SMALL)
    ranges = [part.shards for part in parts(book, RESULTS)]
    assert 1 < len(ranges) < 8
    assert [shard for one in ranges for shard in one] == list(range(8))
    assert {part.shards for part in parts(book, ERRORS)} <= set(ranges)
    assert book.outcome() == before
    book.check_manifest()


def test_an_object_of_the_target_size_is_not_written_again(job: SmallJob) -> None:
    book = Book(job)
    for shard in range(3):
        book.answered(shard, 0, 1, 2, 3)
    book.finalise()
    before = book.all_objects()
    assert go(book, 100).merged == 0
    assert book.all_objects() == before


def test_a_merged_job_is_seen_as_done_by_whoever_asks(book: Book) -> None:
    for target in (SMALL, LARGE):
        go(book, target)
        assert book.ledger.done_counts(book.plan).tolist() == [3] * 8
        for shard, ids in enumerate(book.ids):
            assert book.ledger.done_rows(shard) == set(ids)
            assert book.ledger.done_rows(shard, quiet_since=0.0) == set(ids)
            assert book.ledger.look_up({shard, 3})(shard) == set(ids)
    (errors,) = parts(book, ERRORS)
    book.ledger.store.delete(str(errors))
    assert book.ledger.done_counts(book.plan).tolist() == [1, 3] * 4
    assert book.ledger.done_rows(2) == {book.ids[2][1]}
    problems = verify(book.ledger).problems
    assert f"{errors}: in the manifest, but missing" in problems
    assert any("gap: 8 planned rows of shard 0 to 7 are in no sound object" in problem for problem in problems)


def test_a_merged_job_that_lost_its_manifest_is_finished_again(book: Book) -> None:
    go(book, SMALL)
    before = book.outcome()
    zombie = book.answered(4, 0, by="late")  # a dead letter's row, by now answered by somebody
    book.ledger.store.delete("_magbatch/manifest.json")
    assert book.ledger.done_counts(book.plan).tolist() == [3] * 8
    assert book.finalise() == []
    assert book.outcome() == before | {book.ids[4][0]: "late"}
    assert str(zombie) in book.all_objects()
    book.check_manifest()


def test_samples_of_a_row_are_merged_together(job: SmallJob) -> None:
    book = Book(job, samples=3)
    book.complete()
    book.finalise()
    assert go(book).objects == 2
    book.check_manifest()
    assert len(book.job.records()) == 33


def test_a_job_without_rows_of_a_kind_keeps_a_dataset_that_opens(job: SmallJob) -> None:
    book = Book(job)
    for shard in range(3):
        book.failed(shard, 0, 1, 2, 3)
    book.finalise()
    assert go(book).merged == 3
    assert [part.rows for part in parts(book, RESULTS)] == [0]
    book.check_manifest()
    assert go(book).merged == 0


def test_an_open_job_is_not_merged(job: SmallJob) -> None:
    book = Book(job)
    book.answered(0, 1)
    with pytest.raises(OutputError, match="not complete"):
        go(book)


def test_a_job_of_another_version_is_not_merged(book: Book) -> None:
    rewrite_manifest(book.ledger, schema_version="0")
    with pytest.raises(OutputError, match="columns of schema version 0, and this magbatch writes version 1"):
        go(book)


def edited(book: Book, name: str) -> None:
    """Still a whole object, with the same rows."""
    table = pq.read_table(io.BytesIO(book.ledger.store.read(name)))
    forged = pa.array(["forged"] * table.num_rows, pa.large_string())
    at = table.schema.get_field_index("answer")
    sink = io.BytesIO()
    pq.write_table(table.set_column(at, table.schema.field(at), forged), sink)
    book.ledger.store.write(name, sink.getvalue())


def forgotten(book: Book, name: str) -> None:
    """A manifest that does not name an object's rows."""
    parts = stored(book.ledger).objects
    rewrite_manifest(book.ledger, objects=tuple(entry for entry in parts if str(entry.name) != name))


def gone(book: Book, name: str) -> None:
    book.ledger.store.delete(name)


def another(book: Book, name: str) -> None:
    """A manifest that is made up: it names a shard's object twice, under the right checksums."""
    part = ObjectName.of(name)
    copy = ObjectName(part.kind, part.shard, "zzzz", 0, part.rows)
    book.ledger.store.write(str(copy), book.ledger.store.read(name))
    parts = stored(book.ledger).objects
    entry = next(entry for entry in parts if str(entry.name) == name)
    rewrite_manifest(book.ledger, objects=(*parts, replace(entry, name=copy)))


@pytest.mark.parametrize("spoil", [edited, gone, another, forgotten])
def test_damage_is_not_merged_away(book: Book, spoil: Any) -> None:
    spoil(book, book.all_objects()[0])
    manifest = stored(book.ledger)
    named = {str(entry.name) for entry in manifest.objects}
    before = named & set(book.all_objects())
    with pytest.raises(OutputError, match="magbatch verify"):
        go(book)
    assert book.ledger.manifest() == manifest
    assert before <= set(book.all_objects())


def test_who_holds_the_output_is_not_disturbed(book: Book) -> None:
    before = book.all_objects()
    with Lease(book.ledger.store, print).acquire(), pytest.raises(LeaseError):
        go(book)
    assert book.all_objects() == before


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_a_merge_that_is_interrupted_anywhere_leaves_a_true_manifest(
    job: SmallJob, tmp_path: Path, moment: str
) -> None:
    book = Book(job)
    book.complete()
    book.finalise()
    expected, pristine = book.outcome(), tmp_path / "pristine"
    shutil.copytree(job.output, pristine)
    for at in range(100):
        shutil.rmtree(job.output)
        shutil.copytree(pristine, job.output)
        broken = Ledger(job.output)
        broken.store = Breaking(broken.store, at, moment)
        try:
            merge_objects(broken, LARGE, lambda: None)
        except StorageError:
            names = [str(entry.name) for entry in stored(book.ledger).objects]
            assert outcome(book.ledger.store, names) == expected, f"broken at change {at}"
            tidy(Ledger(job.output), lambda: None)  # what any next command begins with
            book.check_manifest()
            merge_objects(Ledger(job.output), LARGE, lambda: None)
        else:
            break
        assert book.outcome() == expected, f"broken at change {at}"
        assert len(book.all_objects()) == 2
        book.check_manifest()
    assert at > 5, "a merge has more steps than that: this test has not seen them"


def test_a_manifest_deleted_by_hand_in_a_merge_is_made_again(job: SmallJob) -> None:
    """Old and new objects are all there: each row counts once."""
    book = Book(job)
    book.complete()
    book.finalise()
    expected = book.outcome()
    broken = Ledger(job.output)
    broken.store = Breaking(broken.store, 2, "before")  # both objects are written, the manifest is not
    with pytest.raises(StorageError):
        merge_objects(broken, LARGE, lambda: None)
    assert len(book.all_objects()) == 7
    book.ledger.store.delete("_magbatch/manifest.json")
    assert book.ledger.done_counts(book.plan).tolist() == [4, 4, 4]
    assert carry_out(book.ledger, book.spec, book.plan) == []
    assert book.outcome() == expected
    book.check_manifest()
