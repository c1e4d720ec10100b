"""The reading of an answer: values of the job's own columns, and a ballot for the vote over a row's samples.

Anything wrong with an answer is an `AnswerError`. `magbatch.answers.checker` bounds time and memory.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from magbatch.answers.columns import column_of
from magbatch.answers.exact import read_json, write_json
from magbatch.answers.fits import fits
from magbatch.errors import AnswerError
from magbatch.schema import DOCUMENT_FIELDS
from magbatch.spec import BOXED, WHOLE, AnswerSpec, JobSpec, properties

MAX_MESSAGE_CHARS = 500  # characters of an error message, which is sent to the model and stored
# A backslash escapes the next character: \{ is a visible brace and opens no group.
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reading:
    """The values of one answer.

    Attributes:
        values: Values of the job's own columns, by name.
        ballot: Vote of the sample; None if the sample has no vote, or if the job counts no votes.
    """

    values: dict[str, Any] = field(default_factory=dict)
    ballot: str | None = None


class SchemaReader:
    """Reader of answers by a JSON Schema.

    Args:
        schema: A JSON Schema (draft 2020-12) of an object with named properties.

    Attributes:
        fields: Nullable Arrow fields, one per property, in the schema's order.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._columns = {name: column_of(part, schema) for name, part in properties(schema).items()}
        # All fields are nullable: a row whose reasoning was truncated has no answer.
        self.fields = pa.schema([pa.field(name, column.kind) for name, column in self._columns.items()])

    @cached_property
    def _fits(self) -> Any:
        return fits(self._schema)

    def __call__(self, text: str | None) -> dict[str, Any]:
        """Read an answer into values by property.

        Raises:
            AnswerError: The answer is not JSON, does not fit the schema, or a value does not fit its column.
        """
        return self.read(text)[1]

    def read(self, text: str | None) -> tuple[Any, dict[str, Any]]:
        """Read an answer into its JSON value and its values by property; raises the errors of `__call__`."""
        try:
            return self._read(text)
        except RecursionError as error:
            raise AnswerError("the JSON is nested too deeply") from error

    def _read(self, text: str | None) -> tuple[Any, dict[str, Any]]:
        try:
            data = read_json(text or "")
        except ValueError as error:
            raise AnswerError(cut(f"not JSON: {error}")) from error
        wrong = self._fits(data)
        if wrong is not None:
            raise AnswerError(cut(wrong))
        values = {}
        for name, column in self._columns.items():
            try:
                values[name] = pa.scalar(column(data.get(name)), column.kind).as_py()
            except (ValueError, OverflowError, TypeError, pa.ArrowException) as error:
                raise AnswerError(cut(f"$.{name}: {error}")) from error
        return data, values


def cut(message: str) -> str:
    """Cut the middle out of a long message. The middle quotes the answer; the ends name the problem."""
    half = MAX_MESSAGE_CHARS // 2
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[: half - 1]}…{message[-half:]}"


def boxed(text: str) -> str | None:
    r"""Content of the last closed `\boxed{…}`, with matched braces inside; None if there is none.

    Time is linear in the text, even if a model repeats an unclosed `\boxed{`.

    Example:
        `boxed(r"\boxed{1} so \boxed{\frac{1}{2}}, not \boxed{3")` is `\frac{1}{2}`.
    """
    last_start, last_end = -1, -1
    open_braces = list[int | None]()  # start of the content for a box, None for a plain brace
    for match in _BRACES.finditer(text):
        found = match[0]
        if found == "}":
            start = open_braces.pop() if open_braces else None
            if start is not None and start > last_start:
                last_start, last_end = start, match.start()
        elif found[-1] == "{" and found != r"\{":
            open_braces.append(match.end() if len(found) > 1 else None)
    return text[last_start:last_end].strip() if last_end >= 0 else None


class Reader:
    """Reader of answers into the columns that a job asks for.

    Args:
        spec: Section `answer` of the spec.
    """

    def __init__(self, spec: AnswerSpec) -> None:
        self._spec = spec
        self._schema = SchemaReader(spec.schema) if spec.schema is not None else None

    @cached_property
    def fields(self) -> pa.Schema:
        """Columns that the results have for `answer`, in order."""
        fields = list(self._schema.fields) if self._schema is not None else []
        if self._spec.extract is not None:
            fields.append(pa.field("extracted", pa.large_string()))
        if self._spec.vote is not None:
            fields.append(pa.field("vote", pa.struct([("answer", pa.large_string()), ("share", pa.float64())])))
        return pa.schema(fields)

    def __call__(self, answer: str | None) -> Reading:
        """Read the answer of one sample.

        Args:
            answer: The answer's text; None gives an empty `Reading`.

        Raises:
            AnswerError: The answer does not fit `answer.schema`.
        """
        if answer is None:
            return Reading()
        data, values = self._schema.read(answer) if self._schema is not None else (None, {})
        if self._spec.extract is not None:
            values["extracted"] = self._extract(answer)
        return Reading(values, self._ballot(answer, data, values) if self._spec.vote is not None else None)

    def _extract(self, answer: str) -> str | None:
        how = self._spec.extract
        if how == WHOLE:
            return answer
        if how == BOXED:
            return boxed(answer)
        last = None
        for match in re.finditer(how or "", answer):
            last = match
        return last["answer"] if last is not None else None

    def _ballot(self, answer: str, data: Any, values: dict[str, Any]) -> str | None:
        if "extracted" in values:
            return values["extracted"].strip() if values["extracted"] else None
        if self._schema is not None:
            try:
                return write_json(data, canonical=True)
            except RecursionError as error:
                raise AnswerError("the JSON is nested too deeply") from error
        return answer.strip() or None

    def vote(self, ballots: Sequence[str | None]) -> dict[str, Any] | None:
        """Count the votes of a row: the most frequent answer (the first of several) and its share of all samples.

        Args:
            ballots: Vote of each sample, in order.

        Returns:
            `{"answer": …, "share": …}`; None if the job counts no votes.
        """
        if self._spec.vote is None:
            return None
        counted = Counter(ballot for ballot in ballots if ballot is not None)
        if not counted:
            return {"answer": None, "share": 0.0}
        winner, count = counted.most_common(1)[0]
        return {"answer": winner, "share": count / len(ballots)}


def made_columns(spec: JobSpec) -> pa.Schema:
    """Columns of a job's results in addition to the columns of every job, in order."""
    made = list(Reader(spec.answer).fields)
    if spec.input.columns.document is not None:
        made += [pa.field(name, kind) for name, kind in DOCUMENT_FIELDS.items()]
    return pa.schema(made)
