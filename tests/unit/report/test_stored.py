"""The report of a complete job is read only if it is what the manifest names, and is made again from the objects."""

import io
import json

import pytest
from rich.console import Console
from support.book import Book
from support.small_job import SmallJob

from magbatch.errors import LeaseError, OutputError
from magbatch.ledger.layout import MANIFEST, PAGE, REPORT
from magbatch.ledger.lease import Lease
from magbatch.report.stored import mend, put_right, stored_report, whole
from magbatch.storage import open_store


@pytest.fixture
def book(job: SmallJob) -> Book:
    book = Book(job)
    book.complete()
    assert book.finalise() == []
    return book


def lease(book: Book) -> Lease:
    return Lease(open_store(book.ledger.path), Console(file=io.StringIO()).print)


def confirm() -> None:
    return


def repair(book: Book) -> None:
    mend(book.ledger, lease(book))


@pytest.mark.parametrize(
    ("name", "data"),
    [(REPORT, None), (REPORT, b'{"totals": 3}'), (PAGE, None), (PAGE, b"edited")],
    ids=["report missing", "report changed", "page missing", "page changed"],
)
def test_a_report_that_is_not_as_it_was_is_made_again(book: Book, name: str, data: bytes | None) -> None:
    repair(book)
    before = stored_report(book.ledger)
    if data is None:
        book.ledger.store.delete(name)
    else:
        book.ledger.store.write(name, data)
    if name == REPORT:
        with pytest.raises(OutputError, match=r"report\.json is missing, damaged or changed .* makes the report again"):
            stored_report(book.ledger)
    repair(book)
    after = stored_report(book.ledger)
    assert (after.totals, after.planned) == (before.totals, 12)
    manifest = json.loads(book.ledger.store.read(MANIFEST))
    assert {file["name"] for file in manifest["files"]} >= {REPORT, PAGE}
    assert b"<!doctype html>" in book.ledger.store.read(PAGE)


def test_a_report_of_a_sound_job_is_left_alone(book: Book) -> None:
    repair(book)
    before = book.ledger.store.read(MANIFEST), book.ledger.store.read(REPORT)
    repair(book)
    put_right(book.ledger, confirm)
    assert (book.ledger.store.read(MANIFEST), book.ledger.store.read(REPORT)) == before


def test_nothing_is_repaired_while_another_command_holds_the_output(book: Book) -> None:
    repair(book)
    book.ledger.store.delete(PAGE)
    with lease(book).acquire():
        repair(book)  # the report can be read: the page waits for the next run
        assert list(book.ledger.store.list(PAGE)) == []
        book.ledger.store.delete(REPORT)
        with pytest.raises(LeaseError):
            repair(book)


def test_objects_outside_the_manifest_are_found_and_lost_ones_end_it(book: Book) -> None:
    assert whole(book.ledger) == []
    stray = book.answered(0, 1, by="late")
    assert whole(book.ledger) == [stray]
    repair(book)
    assert whole(book.ledger) == []
    lost = next(name for name in book.all_objects() if name.startswith("results/"))
    book.ledger.store.delete(lost)
    with pytest.raises(OutputError, match=r"1 object of its manifest is missing; the first is results/"):
        repair(book)
