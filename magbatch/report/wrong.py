"""Examples of wrong answers for the report: row, expected answer and given answer."""

from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute

from magbatch.answers.grading import Grading
from magbatch.errors import one_line
from magbatch.report.texts import as_text
from magbatch.totals import known_fields

MOST_WRONG = 10  # most examples in the report
TEXT_CHARS = 200  # longest text of an answer in the report: two lines of the page


@dataclass(frozen=True, slots=True)
class WrongAnswer:
    """An answer that differs from the expected one.

    Attributes:
        row_id: Id of the row.
        id: User's id of the row; None if the job has no id column.
        sample: Number of the sample, from 0.
        expected: Expected answer, one line of at most `TEXT_CHARS` characters.
        given: Given answer, shortened in the same way; None if there is no answer.
    """

    row_id: str
    id: str | None
    sample: int
    expected: str | None
    given: str | None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read an example from a report of any version."""
        return cls(**known_fields(cls, data))


class WrongAnswers:
    """Keeps the first wrong answers that it sees.

    Args:
        column: Output column that holds the user's id; None if the job has none.

    Attributes:
        found: Wrong answers, `MOST_WRONG` at most.
    """

    def __init__(self, column: str | None) -> None:
        self._column = column
        self.found: list[WrongAnswer] = []

    def observe(self, table: pa.Table, grading: Grading) -> None:
        """Observe the records of an object.

        Args:
            table: Records with the columns that the grading compares.
            grading: Comparison with the expected answers.
        """
        if len(self.found) < MOST_WRONG:
            self._search(table, grading)

    def _search(self, table: pa.Table, grading: Grading) -> None:
        """Search by halving: only halves with a wrong answer are halved again.

        With w wrong answers among n records about w * log2(n) gradings are needed; most answers of most jobs are right.
        """
        graded, right = grading(table)
        if graded == right or len(self.found) == MOST_WRONG:
            return
        if table.num_rows > 1:
            half = table.num_rows // 2
            self._search(table.slice(0, half), grading)
            self._search(table.slice(half), grading)
            return
        answers = table.column(grading.given)
        answers = pa.compute.struct_field(answers, "answer") if pa.types.is_struct(answers.type) else answers
        expected, given = as_text(table.column(grading.expected))[0], as_text(answers)[0]
        row_id, sample = table.column("row_id")[0].as_py(), table.column("sample")[0].as_py()
        user_id = None if self._column is None else as_text(table.column(self._column))[0]
        self.found.append(WrongAnswer(row_id, _cut(user_id), sample, _cut(expected), _cut(given)))


def _cut(text: str | None) -> str | None:
    return None if text is None else one_line(text, TEXT_CHARS)
