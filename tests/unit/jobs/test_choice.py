"""A choice names dead letters or truncated rows, and refuses words that name neither."""

from pathlib import Path

import pytest
from support.book import Book, complete_with_failures, stored
from support.small_job import SmallJob

from magbatch.errors import SpecError
from magbatch.jobs.choice import Choice, filled_objects


@pytest.fixture
def book(either_job: SmallJob) -> Book:
    book = Book(either_job)
    complete_with_failures(book)
    return book


@pytest.mark.parametrize(
    ("where", "only", "message"),
    [
        (["row_timeot"], None, "did you mean row_timeout?"),
        (["zzz"], None, "the codes are file_unreadable, "),
        ([], "budget", "--only budget"),
        (["row_timeout"], "truncated", "use one of them"),
    ],
)
def test_a_choice_that_is_none_says_what_would_be(where: list[str], only: str | None, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        Choice.of(where, only)
    assert message in str(refused.value)


def test_a_choice_is_of_dead_letters_or_of_truncated_rows(book: Book) -> None:
    manifest = stored(book.ledger)
    dead = [(0, 2), (0, 3), (2, 0), (2, 1), (2, 2), (2, 3)]
    for choice, rows in [
        (Choice.of([], None), dead),
        (Choice.of(["row_timeout"], None), dead[1:]),
        (Choice.of(["missing_value", "row_timeout"], None), dead),
        (Choice.of(["engine_killer"], None), []),
        (Choice.of([], "truncated"), [(1, 1), (1, 2)]),
    ]:
        assert sorted(choice.rows(book.ledger, manifest)) == [book.ids[shard][row] for shard, row in rows]


def test_filled_objects_are_those_with_rows(tmp_path: Path) -> None:
    book = Book(SmallJob(tmp_path))
    for shard in range(3):
        book.answered(shard, 0, 1, 2, 3)
    assert book.finalise() == []
    manifest = stored(book.ledger)
    assert len(filled_objects(manifest)) == len(manifest.objects) - 1 == 3, "errors/ has one object without rows"
