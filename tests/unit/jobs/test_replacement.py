"""Objects that lose rows are written again without them, and new answers get objects of their own."""

from pathlib import Path

from support.book import Book, Hand, stored
from support.small_job import SmallJob, end

from magbatch.jobs.choice import Choice
from magbatch.jobs.replacement import Answers, write_replacement
from magbatch.jobs.retry import Retry, prepare
from magbatch.schema import ERRORS, RESULTS


def test_an_answered_dead_letter_leaves_the_others_of_its_object(tmp_path: Path) -> None:
    book = Book(SmallJob(tmp_path))
    book.answered(0, 0, 1)
    old = book.failed(0, 2, 3)
    for shard in (1, 2):
        book.answered(shard, 0, 1, 2, 3)
    assert book.finalise() == []
    retry = prepare(book.ledger, Choice(), [])
    assert isinstance(retry, Retry)
    own = retry.output()
    own.begin(retry.spec, retry.plan)
    hand = Hand(own, own.plan() or retry.plan)
    hand.answered(0, 1)  # the second of the two rows
    hand.failed(0, 0)
    assert end(own, retry.spec, own.plan() or retry.plan) == []
    _, _, inner = own.complete_job()
    answers = Answers(own, inner, truncated=False)
    manifest = stored(book.ledger)
    change = write_replacement(book.ledger, book.spec, book.plan, manifest, ERRORS, answers)
    assert change.gone == [old]
    assert sorted((entry.name.kind, entry.rows) for entry in change.new) == [(ERRORS, 1), (RESULTS, 1)]
    assert (change.totals.answered, change.totals.failed) == (11, 1)
    assert not change.new_ids
