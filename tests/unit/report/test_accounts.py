"""Usage of a retry is added to that of its job exactly once, whatever is interrupted."""

import io
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.book import Book, Breaking, Hand, ask_again, carry_out, rewrite_report
from support.small_job import SmallJob

from magbatch.errors import StorageError
from magbatch.jobs.choice import Choice
from magbatch.jobs.retry import Retry, drop, merge, prepare
from magbatch.jobs.status import status
from magbatch.ledger.layout import RECORD, REPORT, RETRIES
from magbatch.ledger.ledger import Ledger

QUIET = Console(file=io.StringIO())


def use(ledger: Ledger, **changes: Any) -> None:
    """Change a record as if a run with devices had written it."""
    old = json.loads(ledger.store.read(RECORD)) if any(True for _ in ledger.store.list(RECORD)) else {}
    ledger.store.write(RECORD, json.dumps(old | changes).encode())


def spent(device_s: float, tokens: int) -> dict[str, Any]:
    return {"device_s": device_s, "use": {"commits": 1}, "prompt_tokens": 2 * tokens, "generated_tokens": tokens}


JOB = {"spent": spent(10, 100), "cost": 2.0, "currency": "EUR", "history": [[0.0, 0, 0, 1], [5.0, 12, 100, 1]]}
RETRY = {"spent": spent(5, 30), "cost": 1.0, "currency": "EUR", "history": [[9.0, 0, 0, 1], [11.0, 1, 30, 2]]}


@pytest.fixture
def book(tmp_path: Path) -> Book:
    book = Book(SmallJob(tmp_path))
    book.complete()
    assert book.finalise() == []
    rewrite_report(book.ledger, **JOB)
    use(book.ledger, version=1, at=5.0, running=False, replicas={}, **JOB)
    return book


def check(book: Book) -> None:
    """Report and status have the use of both."""
    report = json.loads(book.ledger.store.read(REPORT))
    assert (report["spent"]["device_s"], report["spent"]["use"]["commits"], report["cost"]) == (15, 2, 3.0)
    assert (report["spent"]["prompt_tokens"], report["spent"]["generated_tokens"]) == (260, 130)
    assert report["history"] == [[0.0, 0, 0, 1], [5.0, 12, 100, 1], [9.0, 11, 100, 1], [11.0, 12, 130, 2]]
    run = status(book.job.output).to_dict()["run"]
    assert run is not None
    assert (run["spent"]["device_s"], run["cost"]) == (15, 3.0)
    assert list(book.ledger.store.list(RETRIES)) == []


def begun(ledger: Ledger) -> Retry:
    found = prepare(ledger, Choice(), [])
    assert isinstance(found, Retry)
    return found


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_merge_that_breaks_anywhere_counts_a_retry_once(
    book: Book, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magbatch.report.page.render", lambda report: b"a page")  # drawing takes most of a second
    found = begun(book.ledger)
    place = found.output()
    place.begin(found.spec, found.plan)
    Hand(place, found.plan).answer_all()
    assert carry_out(place, found.spec, found.plan) == []
    rewrite_report(place, **RETRY)
    pristine = tmp_path / "pristine"
    shutil.copytree(book.job.output, pristine)
    for at in itertools.count():
        shutil.rmtree(book.job.output)
        shutil.copytree(pristine, book.job.output)
        broken = Ledger(book.job.output)
        broken.store = Breaking(broken.store, at, moment)
        try:
            merge(begun(broken), lambda: None)
        except StorageError:
            ask_again(Ledger(book.job.output), Hand.answer_all)
        else:
            break
        check(book)
    check(book)
    assert at > 5, "a merge has more steps than that: this test has not seen them"


def test_what_is_dropped_was_paid_for_too(book: Book) -> None:
    found = begun(book.ledger)
    place = found.output()
    place.begin(found.spec, found.plan)
    use(place, version=1, at=11.0, running=True, **RETRY)  # killed: this is all that it has left
    assert drop(book.job.output, QUIET)
    check(book)
    assert not drop(book.job.output, QUIET)
    check(book)


def test_a_report_of_another_version_is_read(book: Book) -> None:
    rewrite_report(book.ledger, spent={"device_s": 10, "use": {"commits": 1, "later": 1}, "later": 1}, later=2)
    assert ask_again(book.ledger, Hand.answer_all).answered == 1
    report = json.loads(book.ledger.store.read(REPORT))
    assert report["spent"]["generated_tokens"] == 11 * 7  # of the answers that were there
