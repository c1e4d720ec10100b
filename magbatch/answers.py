"""What an answer is made into: typed columns by a JSON Schema, an extracted part, a vote over samples.

One promise: a column's type comes from the schema alone, never from an answer, and what does not fit it is an
error of that answer. What Arrow has no type for (a choice of several types, an object with free names, a schema
that holds itself) stays JSON text.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import cached_property
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import best_match
from rfc3986_validator import validate_rfc3986

from magbatch.rows import DOCUMENT_FIELDS
from magbatch.spec import BOXED, WHOLE, AnswerSpec, JobSpec, properties, resolve

MAX_MESSAGE_CHARS = 500  # of what is wrong: it is sent to the model, and stored
_BOX = re.compile(r"\\boxed\s*\{")
_TEXT_TYPES: dict[str, tuple[pa.DataType, Callable[[str], Any]]] = {
    "date": (pa.date32(), date.fromisoformat),
    "date-time": (pa.timestamp("us", tz="UTC"), datetime.fromisoformat),
    "time": (pa.time64("us"), lambda text: time.fromisoformat(text).replace(tzinfo=None)),
}
_PLAIN: dict[str, tuple[pa.DataType, type]] = {
    "integer": (pa.int64(), int),
    "number": (pa.float64(), float),
    "boolean": (pa.bool_(), bool),
}


_FORMATS = FormatChecker()
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def _check_iris() -> None:
    """An IRI is what is a URI once its other characters are percent-encoded (RFC 3987, section 3.1)."""
    for name, rule in (("iri", "URI"), ("iri-reference", "URI_reference")):

        def check(value: object, rule: str = rule) -> bool:
            encoded = _NOT_ASCII.sub(lambda found: quote(found[0], errors="surrogatepass"), str(value))
            return not isinstance(value, str) or validate_rfc3986(encoded, rule=rule) is not None

        _FORMATS.checks(name)(check)


_check_iris()


class AnswerError(ValueError):
    """An answer that does not fit; the message says where, for a person and for the model."""


@dataclass(frozen=True, slots=True)
class _Column:
    """How a part of an answer is stored."""

    kind: pa.DataType
    convert: Callable[[Any], Any]


_AS_JSON = _Column(pa.large_string(), lambda value: json.dumps(value, ensure_ascii=False))


def _column(schema: Any, root: dict[str, Any], inside: tuple[str, ...] = ()) -> tuple[_Column, bool]:
    """The column of a schema, and whether it may be null."""
    if not isinstance(schema, dict):
        return _AS_JSON, True
    if "$ref" in schema:
        reference = schema["$ref"]
        if reference in inside or not reference.startswith("#"):
            return _AS_JSON, True
        return _column(resolve(reference, root), root, (*inside, reference))
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        others = [choice for choice in choices if choice != {"type": "null"}]
        if len(others) != 1:
            return _AS_JSON, len(others) < len(choices)
        column, nullable = _column(others[0], root, inside)
        return column, nullable or len(others) < len(choices)
    if "allOf" in schema and len(schema["allOf"]) == 1:
        return _column(schema["allOf"][0], root, inside)
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    nullable = "null" in kinds
    named = [kind for kind in kinds if kind != "null"]
    if len(named) != 1 or named[0] is None:
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        if values and all(isinstance(value, str) or value is None for value in values):
            return _Column(pa.large_string(), str), None in values
        return _AS_JSON, True
    return _typed(named[0], schema, root, inside), nullable or None in schema.get("enum", [])


def _typed(kind: str, schema: dict[str, Any], root: dict[str, Any], inside: tuple[str, ...]) -> _Column:
    if kind == "string":
        return _Column(*_TEXT_TYPES.get(schema.get("format", ""), (pa.large_string(), str)))
    if kind in _PLAIN:
        return _Column(*_PLAIN[kind])
    if kind == "array" and isinstance(schema.get("items"), dict):
        item, _ = _column(schema["items"], root, inside)
        return _Column(pa.list_(item.kind), lambda values: [_or_none(item, value) for value in values])
    if kind == "object" and schema.get("properties"):
        members = {name: _column(part, root, inside)[0] for name, part in schema["properties"].items()}
        struct = pa.struct([pa.field(name, member.kind) for name, member in members.items()])
        return _Column(struct, lambda value: {name: _or_none(part, value.get(name)) for name, part in members.items()})
    return _AS_JSON


def _or_none(column: _Column, value: Any) -> Any:
    return None if value is None else column.convert(value)


class SchemaReader:
    """Reads answers by a JSON Schema.

    Args:
        schema: A JSON Schema (draft 2020-12) of an object with named properties.

    Attributes:
        fields: One nullable Arrow field for each property, in the schema's order.
    """

    def __init__(self, schema: dict[str, Any]) -> None:
        self._validator = Draft202012Validator(schema, format_checker=_FORMATS)
        self._columns = {name: _column(part, schema)[0] for name, part in properties(schema).items()}
        # Nullable all of them: a row whose thinking was truncated has no answer.
        self.fields = pa.schema([pa.field(name, column.kind) for name, column in self._columns.items()])

    def __call__(self, text: str | None) -> dict[str, Any]:
        """The values of an answer, by property.

        Raises:
            AnswerError: It is no JSON, does not fit the schema, or a value does not fit its column.
        """
        try:
            data = json.loads(text or "")
        except ValueError as error:
            raise AnswerError(f"not JSON: {error}") from error
        wrong = best_match(self._validator.iter_errors(data))
        if wrong is not None:
            raise AnswerError(f"{wrong.json_path}: {wrong.message}"[:MAX_MESSAGE_CHARS])
        values = {}
        for name, column in self._columns.items():
            try:
                values[name] = pa.scalar(_or_none(column, data.get(name)), column.kind).as_py()
            except (ValueError, OverflowError, TypeError, pa.ArrowException) as error:
                raise AnswerError(f"$.{name}: {error}"[:MAX_MESSAGE_CHARS]) from error
        return values


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{…}`, braces within it matched; None where there is none."""
    found = None
    for match in _BOX.finditer(text):
        depth = 1
        for position in range(match.end(), len(text)):
            depth += (text[position] == "{") - (text[position] == "}")
            if not depth:
                found = text[match.end() : position].strip()
                break
    return found


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

    def __call__(self, answer: str | None) -> dict[str, Any]:
        """The values of one sample's columns; an answer that is NULL gives none.

        Raises:
            AnswerError: It does not fit `answer.schema`.
        """
        if answer is None:
            return {}
        values = self._schema(answer) if self._schema is not None else {}
        if self._spec.extract is not None:
            values["extracted"] = self._extract(answer)
        return values

    def _extract(self, answer: str) -> str | None:
        how = self._spec.extract
        if how == WHOLE:
            return answer
        if how == BOXED:
            return boxed(answer)
        matches = list(re.finditer(how or "", answer))
        return matches[-1]["answer"] if matches else None

    def vote(self, answers: Sequence[tuple[str | None, dict[str, Any]]]) -> dict[str, Any] | None:
        """The answer that most samples agree on, and its share of all samples; the first of several.

        Args:
            answers: Each sample's answer, and what `__call__` gave for it.
        """
        if self._spec.vote is None:
            return None
        votes = [self._ballot(answer, values) for answer, values in answers]
        counted = Counter(ballot for ballot in votes if ballot is not None)
        if not counted:
            return {"answer": None, "share": 0.0}
        winner, count = counted.most_common(1)[0]
        return {"answer": winner, "share": count / len(votes)}

    def _ballot(self, answer: str | None, values: dict[str, Any]) -> str | None:
        if "extracted" in values:
            return values["extracted"].strip() if values["extracted"] else None
        if answer is not None and self._schema is not None:
            return json.dumps(json.loads(answer), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return answer.strip() if answer else None


def made_columns(spec: JobSpec) -> pa.Schema:
    """The columns that a job's results have beside those of every job, in their order."""
    made = list(Reader(spec.answer).fields)
    if spec.input.columns.document is not None:
        made += [pa.field(name, kind) for name, kind in DOCUMENT_FIELDS.items()]
    return pa.schema(made)
