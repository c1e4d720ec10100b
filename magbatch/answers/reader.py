"""One answer -> the job's own columns, and a ballot for the vote over a row's samples.

What does not fit is an error of that answer, whatever is in it. Time and memory are not bounded here, but in
`magbatch.answers.checker`.
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
from magbatch.schema import DOCUMENT_FIELDS
from magbatch.spec import BOXED, WHOLE, AnswerSpec, JobSpec, properties

MAX_MESSAGE_CHARS = 500  # of what is wrong: it is sent to the model, and stored
# A backslash takes the character after it along: \{ is a brace that is shown, and groups nothing.
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


class AnswerError(ValueError):
    """An answer that does not fit; the message says where, for a person and for the model."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one answer was made into.

    Attributes:
        values: Values of the job's own columns, by name.
        ballot: Vote of the sample; None if it has none, or the job counts no votes.
    """

    values: dict[str, Any] = field(default_factory=dict)
    ballot: str | None = None


class SchemaReader:
    """Reads answers by a JSON Schema.

    Args:
        schema: A JSON Schema (draft 2020-12) of an object with named properties.

    Attributes:
        fields: One nullable Arrow field for each property, in the schema's order.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._columns = {name: column_of(part, schema) for name, part in properties(schema).items()}
        # Nullable all of them: a row whose thinking was truncated has no answer.
        self.fields = pa.schema([pa.field(name, column.kind) for name, column in self._columns.items()])

    @cached_property
    def _fits(self) -> Any:
        return fits(self._schema)

    def __call__(self, text: str | None) -> dict[str, Any]:
        """The values of an answer, by property.

        Raises:
            AnswerError: It is no JSON, does not fit the schema, or a value does not fit its column.
        """
        return self.read(text)[1]

    def read(self, text: str | None) -> tuple[Any, dict[str, Any]]:
        """The answer's JSON value, and its values by property; raises as `__call__` does."""
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
    """A message without its middle, where the answer's own text stands, if it is long."""
    half = MAX_MESSAGE_CHARS // 2
    return message if len(message) <= MAX_MESSAGE_CHARS else f"{message[: half - 1]}…{message[-half:]}"


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` that is closed, braces within it matched; None if there is none.

    One pass: time is linear in the text.
    """
    last_start, last_end = -1, -1
    open_braces = list[int | None]()  # of a box: where its content starts
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
    """Makes of an answer what the job wants beside its text.

    Args:
        spec: The job's `answer`.
    """

    def __init__(self, spec: AnswerSpec) -> None:
        self._spec = spec
        self._schema = SchemaReader(spec.schema) if spec.schema is not None else None

    @cached_property
    def fields(self) -> pa.Schema:
        """Columns that results have for it, in their order."""
        fields = list(self._schema.fields) if self._schema is not None else []
        if self._spec.extract is not None:
            fields.append(pa.field("extracted", pa.large_string()))
        if self._spec.vote is not None:
            fields.append(pa.field("vote", pa.struct([("answer", pa.large_string()), ("share", pa.float64())])))
        return pa.schema(fields)

    def __call__(self, answer: str | None) -> Reading:
        """What one sample's answer is made into; an answer that is NULL gives nothing.

        Raises:
            AnswerError: It does not fit `answer.schema`.
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
        """The answer that most samples agree on, and its share of all samples; the first of several.

        Args:
            ballots: Vote of each sample.
        """
        if self._spec.vote is None:
            return None
        counted = Counter(ballot for ballot in ballots if ballot is not None)
        if not counted:
            return {"answer": None, "share": 0.0}
        winner, count = counted.most_common(1)[0]
        return {"answer": winner, "share": count / len(ballots)}


def made_columns(spec: JobSpec) -> pa.Schema:
    """The columns that a job's results have beside those of every job, in their order."""
    made = list(Reader(spec.answer).fields)
    if spec.input.columns.document is not None:
        made += [pa.field(name, kind) for name, kind in DOCUMENT_FIELDS.items()]
    return pa.schema(made)
