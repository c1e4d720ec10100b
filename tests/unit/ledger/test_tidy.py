"""Cleaning up after a manifest."""

import pytest
from support.book import Book

from magbatch.errors import LeaseError
from magbatch.ledger.layout import SUPERSEDED
from magbatch.ledger.tidy import strays, supersede, tidy
from magbatch.ledger.verify import verify


def test_what_a_zombie_commits_after_the_end_is_moved_away(either_book: Book) -> None:
    book = either_book
    zombie = book.writer(1)
    book.complete()
    assert book.finalise() == []
    late = book.answered(1, 0, 3, writer=zombie)
    assert verify(book.ledger).problems != []
    tidy(book.ledger, lambda: None)
    assert str(late) not in book.all_objects()
    book.check_manifest()


def test_objects_and_the_manifest_are_compared_by_name(book: Book) -> None:
    assert strays(book.ledger) == ([], []), "a job that is not complete has no strays"
    zombie = book.writer(1)
    book.complete()
    book.finalise()
    late = book.answered(1, 0, writer=zombie)
    (gone, *_) = book.job.objects()
    book.ledger.store.delete(gone)
    assert strays(book.ledger) == ([late], [gone])
    supersede(book.ledger, late)
    assert strays(book.ledger) == ([], [gone])
    assert book.ledger.store.read(f"{SUPERSEDED}/{late}")


def test_a_command_that_lost_its_lease_tidies_nothing(book: Book) -> None:
    zombie = book.writer(1)
    book.complete()
    book.finalise()
    late = book.answered(1, 0, writer=zombie)

    def lost() -> None:
        raise LeaseError("another run has taken the output over")

    with pytest.raises(LeaseError):
        tidy(book.ledger, lost)
    assert str(late) in book.all_objects()
