"""A few wrong answers of a job, for people: which row, what was expected, what was answered."""

from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute

from magbatch.answers.grading import Grading
from magbatch.errors import one_line
from magbatch.report.texts import as_text
from magbatch.totals import known_fields

MOST_WRONG = 10
TEXT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Wrong:
    """One answer that is not the right one.

    Attributes:
        row_id: Row of it.
        id: The user's id of the row; None without such a column.
        sample: Number of the sample.
        expected: The right answer, cut to a line.
        given: What was held against it, cut to a line; None where there is none.
    """

    row_id: str
    id: str | None
    sample: int
    expected: str | None
    given: str | None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Of a report of this version or another."""
        return cls(**known_fields(cls, data))


class WrongAnswers:
    """Keeps the first wrong answers that it is shown.

    Args:
        column: The user's id, where the job has one.
    """

    def __init__(self, column: str | None) -> None:
        self._column = column
        self.found: list[Wrong] = []

    def observe(self, table: pa.Table, grading: Grading) -> None:
        """Take an object's results that has some."""
        if len(self.found) < MOST_WRONG:
            self._look(table, grading)

    def _look(self, table: pa.Table, grading: Grading) -> None:
        """Halves that hold a wrong answer are halved again: most rows of most jobs are right."""
        graded, right = grading(table)
        if graded == right or len(self.found) == MOST_WRONG:
            return
        if table.num_rows > 1:
            half = table.num_rows // 2
            self._look(table.slice(0, half), grading)
            self._look(table.slice(half), grading)
            return
        given = table.column(grading.given)
        given = pa.compute.struct_field(given, "answer") if pa.types.is_struct(given.type) else given
        expected, given = as_text(table.column(grading.expected))[0], as_text(given)[0]
        row_id, sample = table.column("row_id")[0].as_py(), table.column("sample")[0].as_py()
        user_id = None if self._column is None else as_text(table.column(self._column))[0]
        self.found.append(Wrong(row_id, _cut(user_id), sample, _cut(expected), _cut(given)))


def _cut(text: str | None) -> str | None:
    return None if text is None else one_line(text, TEXT_CHARS)
