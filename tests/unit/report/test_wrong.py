"""WrongAnswer answers for people: found among many right ones, cut, and no more than a few."""

import pyarrow as pa
import pytest

from magbatch.answers.grading import Grading
from magbatch.report.wrong import MOST_WRONG, TEXT_CHARS, WrongAnswers


def table(given: list[str | None], expected: list[str | None]) -> pa.Table:
    count = len(given)
    return pa.table(
        {
            "row_id": [f"k-{index}" for index in range(count)],
            "sample": pa.array([0] * count, pa.int16()),
            "id": pa.array(range(count), pa.int64()),
            "answer": pa.array(given, pa.string()),
            "expected": pa.array(expected, pa.string()),
        }
    )


@pytest.mark.parametrize("places", [[0], [999], [3, 500, 998]])
def test_wrong_answers_are_found_where_they_are(places: list[int]) -> None:
    given = [str(index) for index in range(1000)]
    for place in places:
        given[place] = "no"
    answers = WrongAnswers("id")
    answers.observe(table(list(given), [str(index) for index in range(1000)]), Grading("expected"))
    found = [(one.row_id, one.id, one.sample, one.expected, one.given) for one in answers.found]
    assert found == [(f"k-{place}", str(place), 0, str(place), "no") for place in places]


def test_a_few_are_kept_as_short_lines_and_what_nobody_knows_is_not_wrong() -> None:
    answers = WrongAnswers(None)
    answers.observe(table(["x\x1b[31m\n" + "y" * 10_000, None, "z"], ["a", "b", None]), Grading("expected"))
    first, second = answers.found
    assert first.given is not None
    assert (first.id, len(first.given), first.given[:3]) == (None, TEXT_CHARS, "x y")
    assert second.given is None
    for _ in range(3):
        answers.observe(table(["x"] * 20, ["a"] * 20), Grading("expected"))
    assert len(answers.found) == MOST_WRONG


def test_a_vote_is_shown_by_its_answer() -> None:
    votes = pa.StructArray.from_arrays([pa.array(["7", "8"]), pa.array([0.5, 0.5])], names=["answer", "share"])
    rows = table(["", ""], ["7", "9"]).append_column("vote", votes)
    answers = WrongAnswers("id")
    answers.observe(rows, Grading("expected", "vote"))
    assert [(one.id, one.expected, one.given) for one in answers.found] == [("1", "9", "8")]
