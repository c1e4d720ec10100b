"""The ledger: which rows are done, from names and contents of objects."""

import io
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.book import Book

from magbatch.errors import OutputError
from magbatch.ledger.ledger import Ledger
from magbatch.schema import ObjectName
from magbatch.storage import open_store
from magbatch.totals import Totals


def test_what_is_done_is_what_is_in_an_object(either_book: Book) -> None:
    book = either_book
    assert book.ledger.done_rows(1) == frozenset()
    writer = book.writer(1)
    book.answered(1, 2, writer=writer)
    book.failed(1, 0, writer=writer)
    book.answered(2, 1)
    assert book.ledger.done_rows(1) == {book.ids[1][2], book.ids[1][0]}
    assert book.ledger.done_rows(0) == frozenset()
    assert book.ledger.done_counts(book.plan).tolist() == [0, 2, 1]
    book.answered(1, 2, 3)  # another attempt, which did row 2 again
    assert book.ledger.done_rows(1) == {book.ids[1][row] for row in (0, 2, 3)}
    assert book.ledger.done_counts(book.plan).tolist() == [0, 3, 1]


def test_several_shards_are_looked_up_by_one_listing_of_each_kind(
    either_book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume of many shards would list a whole folder for each of them."""
    book = either_book
    book.answered(0, 1)
    book.answered(1, 2)
    book.failed(1, 0)
    book.answered(2, 1, 3)
    store = type(open_store(book.job.output))
    real, listed = store.list, list[str]()

    def noted(self: Any, prefix: str, after: str = "") -> Any:
        listed.append(prefix)
        return real(self, prefix, after)

    monkeypatch.setattr(store, "list", noted)
    for shards in ({0, 1, 2}, {1, 2}, {1}, {0, 2}):
        done_rows = book.ledger.look_up(shards)
        found = {shard: done_rows(shard) for shard in shards}
        assert sorted(listed) == ["errors/", "errors/r", "results/", "results/r"]
        listed.clear()
        assert found == {shard: book.ledger.done_rows(shard) for shard in shards}
        listed.clear()
    book.ledger.look_up(())
    assert listed == []


def test_a_disk_is_listed_once_where_no_one_else_writes_any_more(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    book.answered(1, 2)
    store = type(open_store(book.job.output))
    real, listed = store.list, list[str]()

    def noted(self: Any, prefix: str, after: str = "") -> Any:
        listed.append(prefix)
        return real(self, prefix, after)

    monkeypatch.setattr(store, "list", noted)
    now = time.monotonic()
    assert [len(book.ledger.done_rows(0, quiet_since=now)) for _ in range(10)] == [0] * 10
    assert len(listed) == 4
    assert book.ledger.done_rows(1, quiet_since=now) == {book.ids[1][2]}
    book.answered(0, 1)  # as another run may do while it is not quiet
    assert book.ledger.done_rows(0) == {book.ids[0][1]}
    assert book.ledger.done_rows(0, quiet_since=time.monotonic() + 60) == {book.ids[0][1]}
    assert book.ledger.done_rows(0, quiet_since=time.monotonic()) == {book.ids[0][1]}


def test_the_sums_of_what_is_done_come_from_the_footers(either_book: Book) -> None:
    """No row is read. An object without a revision in its footer, and an object that is gone by then, are skipped."""
    book = either_book
    writer = book.writer(1)
    book.answered(1, 1, 2, writer=writer)
    book.failed(1, 0, writer=writer)
    book.answered(2, 1)
    names = book.ledger.object_names()
    expected = Totals()
    for name in names:
        table = pq.read_table(io.BytesIO(book.ledger.store.read(str(name))))
        expected.add(name.kind, table)
    assert (expected.answered, expected.failed) == (3, 1)
    reads: list[str] = []
    whole = book.ledger.store.read

    def noting(name: str) -> bytes:
        reads.append(name)
        return whole(name)

    ledger = Ledger(book.ledger.path)
    ledger.store.read = noting  # type: ignore[method-assign]
    assert ledger.totals(names) == expected
    assert reads == []
    bare, sink = pq.read_table(io.BytesIO(whole(str(names[0])))).replace_schema_metadata(None), io.BytesIO()
    pq.write_table(bare, sink)
    ledger.store.write(str(names[0]), sink.getvalue())
    assert ledger.totals(names) == expected
    assert reads == [str(names[0])]
    for wrong in (b"{", b"[1]", b"null"):
        odd = io.BytesIO()
        pq.write_table(bare.replace_schema_metadata({b"magbatch.totals": wrong}), odd)
        ledger.store.write(str(names[0]), odd.getvalue())
        assert ledger.totals(names) == expected, wrong
    ledger.store.delete(str(names[0]))
    assert ledger.totals(names).rows == expected.rows - names[0].rows


def test_finished_input_and_objects_of_one_attempt_are_never_read(book: Book) -> None:
    book.complete()
    for name in book.all_objects():
        book.job.put(f"output/{name}", b"nobody can read this")
    assert book.ledger.done_counts(book.plan).tolist() == [4, 4, 4]
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(f"{book.job.output}/{name}")


def test_two_attempts_that_overlap_are_counted_exactly(book: Book) -> None:
    book.answered(0, 0, 1, 2)
    book.answered(0, 1, 2)  # by their names alone the two would complete the shard
    book.failed(1, 0, 1)
    book.answered(1, 0, 1)
    assert book.ledger.done_counts(book.plan).tolist() == [3, 2, 0]


def test_two_names_of_one_attempt_that_overlap_are_not_believed(book: Book) -> None:
    """A PUT that failed for its writer but landed: what names add up to is more than there can be."""
    one = book.answered(0, 0, 1, 2)
    two = ObjectName(one.kind, one.shard, one.attempt, one.seq + 1, 2)
    table = pq.read_table(io.BytesIO(book.ledger.store.read(str(one)))).slice(1)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    book.ledger.store.write(str(two), sink.getvalue())
    assert book.ledger.done_counts(book.plan).tolist() == [3, 0, 0]


def test_an_object_that_cannot_be_read_is_an_error_of_the_output(book: Book) -> None:
    name = book.answered(0, 0)
    book.answered(0, 1)
    book.job.put(f"output/{name}", b"nobody can read this")
    with pytest.raises(OutputError, match=str(name)):
        book.ledger.done_counts(book.plan)


def test_objects_of_another_kind_are_no_rows(book: Book) -> None:
    book.job.put("output/results/notes.txt", b"")
    book.job.put("output/results/00000001-abc-0000.parquet", b"")
    assert book.ledger.done_counts(book.plan).tolist() == [0, 0, 0]
