"""Dead letters in a few words."""

import pytest
from support.book import Book

from magbatch.errors import ErrorCode
from magbatch.ledger.letters import examples, explained, listed, verdict
from magbatch.totals import Totals


@pytest.fixture
def failed(book: Book) -> Book:
    """Three missing values and a timeout in shard 0, a timeout in shard 1."""
    writer = book.writer(0)
    book.failed(0, 0, 1, 2, by="no question", writer=writer)
    book.failed(0, 3, by="too slow", writer=writer, code=ErrorCode.ROW_TIMEOUT)
    book.failed(1, 0, by="slow again", code=ErrorCode.ROW_TIMEOUT)
    return book


BY_CODE = {"row_timeout": 2, "missing_value": 3}


def test_codes_are_listed_by_their_counts() -> None:
    assert listed(BY_CODE | {"internal": 2}) == "missing_value 3, internal 2, row_timeout 2"


def test_examples_come_by_code_the_most_frequent_first(failed: Book) -> None:
    found = [(letter.code, letter.message) for letter in examples(failed.ledger, BY_CODE, each=2)]
    assert found == [("missing_value", "no question")] * 2 + [
        ("row_timeout", "too slow"),
        ("row_timeout", "slow again"),
    ]


def test_rows_with_an_answer_and_replaced_objects_give_no_examples(failed: Book) -> None:
    gone = [name for name in failed.ledger.objects("errors") if name.shard == 1]
    found = examples(failed.ledger, BY_CODE, but=failed.ids[0][:2], gone=gone)
    assert [letter.row_id for letter in found] == failed.ids[0][2:]


def test_an_object_that_cannot_be_read_is_skipped(failed: Book) -> None:
    (name, *_) = failed.ledger.objects("errors")
    failed.ledger.store.write(str(name), b"damaged")
    assert [letter.message for letter in examples(failed.ledger, {"row_timeout": 2})] == ["too slow", "slow again"]


def test_an_output_is_explained_in_a_sentence(failed: Book) -> None:
    assert explained(failed.ledger) == (
        f'Their codes: missing_value 3, row_timeout 2; such as "no question". '
        f"Dead letters: {failed.ledger.path}/errors/*.parquet"
    )


@pytest.mark.parametrize(
    ("allowed", "answered", "begins"),
    [
        (None, 0, "None of 12 rows was answered"),
        (None, 1, None),
        (5, 0, None),
        (4, 7, "5 rows failed, more than limits.max_failed_rows allows (4)."),
    ],
)
def test_a_job_fails_by_its_limit_or_if_no_row_was_answered(
    failed: Book, allowed: int | None, answered: int, begins: str | None
) -> None:
    spec = failed.job.spec(limits={"max_failed_rows": allowed})
    found = verdict(spec, 12, Totals(answered=answered, failed=5, by_code=BY_CODE), failed.ledger)
    assert (found is None) if begins is None else (found is not None and found.startswith(begins))
