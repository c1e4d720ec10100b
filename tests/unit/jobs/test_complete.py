"""A frozen job is completed from where it stands: a late listing is waited for, and committed rows are told."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from support.book import Book
from support.small_job import SmallJob

from magbatch.errors import StorageError, TooManyFailedError
from magbatch.jobs import complete as module
from magbatch.jobs.complete import complete
from magbatch.ledger.lease import Lease
from magbatch.ledger.verify import verify
from magbatch.report.report import Report
from magbatch.storage import open_store


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """A job whose rows are all committed: 11 answers and a dead letter."""
    book = Book(SmallJob(tmp_path))
    book.answered(0, 0, 1, 2)
    book.failed(0, 3)
    for shard in (1, 2):
        book.answered(shard, 0, 1, 2, 3)
    return book


def completed(book: Book, *, judged: bool = True, **sections: object) -> tuple[Report, str]:
    """The report of a job without open rows, and what the console said."""
    said, lease = io.StringIO(), Lease(open_store(book.ledger.path), print)
    spec = book.job.spec(**sections)
    with lease.acquire():
        report = complete(
            spec,
            book.plan,
            book.job.steps.checkpoint,
            book.ledger,
            Console(file=said, width=200),
            lease,
            time.monotonic(),
            judged=judged,
        )
    return report, said.getvalue()


def test_a_job_without_open_rows_is_proved_and_reported(book: Book) -> None:
    report, said = completed(book)
    assert "12 of 12 rows are committed already; continuing with the rest" in said
    assert (report.totals.answered, report.totals.failed, report.planned) == (11, 1, 12)
    assert verify(book.ledger).verified


def test_a_run_ends_early_if_earlier_ones_left_too_many_dead_letters(book: Book) -> None:
    book.ledger.store.delete(book.job.objects()[0])  # its rows are open again
    with pytest.raises(TooManyFailedError, match="1 row failed, more than limits"):
        completed(book, limits={"max_failed_rows": 0})


def test_the_last_wait_for_a_late_listing_ends_with_the_missing_rows(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_LISTING_S", (0.0,))
    monkeypatch.setattr(module, "finalise", lambda *_: (None, ["row-7"]))
    with pytest.raises(StorageError, match=r"1 row is missing from the listed objects.*the first is row-7"):
        completed(book)
