"""Answers held against the right ones, where the input knows them: by what the job makes of an answer, and by type.

What is compared is the vote, else what was extracted, else the one property of the schema, else the answer's text. A
number is equal whatever its digits look like (19.90 and 19.9), a truth whatever its case, a text whatever its blanks
around it and the form of its accents. Null is never right.
"""

import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute

from magbatch.answers.exact import Number, read_json, write_json
from magbatch.spec import JobSpec, properties

RULE = 3  # of what is equal; a manifest says by which its right answers were counted
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Grading:
    """What of a job's results is held against what.

    Attributes:
        expected: Name in the output of the carried column of right answers.
        given: The column that is held against it.
        name: The one property of the schema, where `given` holds JSON of the whole answer.
        as_json: `given` holds JSON text.
    """

    expected: str
    given: str = "answer"
    name: str | None = None
    as_json: bool = False

    @classmethod
    def of(cls, spec: JobSpec, expected: str | None) -> Self | None:
        """What a job asks for; None if the input knows no right answers.

        Args:
            spec: The job.
            expected: Name in the output of the column of right answers.
        """
        answer = spec.answer
        if expected is None:
            return None
        names = list(properties(answer.schema or {}))
        one = names[0] if len(names) == 1 else None
        if answer.vote is not None:
            json = answer.extract is None and answer.schema is not None
            return cls(expected, "vote", one if json else None, as_json=json)
        if answer.extract is not None:
            return cls(expected, "extracted")
        # Read from the answer itself: the property's column may hold its JSON.
        return cls(expected, "answer", one, as_json=answer.schema is not None)

    def __call__(self, table: pa.Table) -> tuple[int, int]:
        """How many records of an object have a right answer that is known, and how many of those are right.

        A vote is one answer for all samples of a row: it counts once. A pair that cannot be compared is not right.

        Args:
            table: With the columns `sample`, `given` and `expected`.
        """
        table = table.select(list(dict.fromkeys(["sample", self.given, self.expected])))
        if self.given == "vote":
            table = table.filter(pa.compute.equal(table.column("sample"), 0))
        expected = _plain(table.column(self.expected))
        given = table.column(self.given)
        given = pa.compute.struct_field(given, "answer") if pa.types.is_struct(given.type) else _plain(given)
        if not self.as_json and _is_text(expected.type) and _is_text(given.type):
            with suppress(pa.ArrowException):  # a text that is no UTF-8: then each pair is looked at alone
                return _same_texts(given, expected)
        width = _double_width(expected.type)
        found = [self._right(*pair, width) for pair in zip(given, expected, strict=True)]
        return sum(one is not None for one in found), sum(one is True for one in found)

    def _right(self, given: pa.Scalar, expected: pa.Scalar, width: type) -> bool | None:
        """Whether a pair is the same; None if nobody knows the right answer."""
        try:
            wanted = expected.as_py() if expected.is_valid else None
            if wanted is None:
                return None
            return self._same(given.as_py(), wanted, width)
        except Exception:  # noqa: BLE001 - a pair's boundary: Python has no value for a day in the year 29348
            return False

    def _same(self, given: Any, expected: Any, width: type) -> bool:
        if given is not None and self.as_json:
            given = read_json(given)  # an answer of an older version may be none
            if self.name is not None:
                given = given.get(self.name) if isinstance(given, dict) else None
        return given is not None and _equal(given, expected, width)


def _equal(given: Any, expected: Any, width: type = np.float64) -> bool:
    """Whether two values are the same, each a text or of a type; a text is read as the other's type."""
    if isinstance(given, dict | list):
        return _same_json(given, expected)
    if isinstance(given, str) and isinstance(expected, str):
        return _normal(given) == _normal(expected)
    for kinds, read in ((bool, _truth), ((int, float, Decimal), _number), ((date, time), _moment)):
        if isinstance(given, kinds) or isinstance(expected, kinds):
            one, other = read(given), read(expected)
            if one is None or other is None:
                return False
            if isinstance(given, float) or isinstance(expected, float):
                return bool(width(one) == width(other))
            return type(one) is type(other) and bool(one == other) if kinds == (date, time) else bool(one == other)
    return False


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else _TRUTHS.get(value.strip().lower()) if isinstance(value, str) else None


def _number(value: Any) -> Decimal | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return Decimal(value.strip()) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, float):
        return Decimal(value) if np.isfinite(value) else None
    return Decimal(value) if isinstance(value, int | Decimal) else None


def _moment(value: Any) -> date | time | None:
    """A day, a time without its offset, or an instant in UTC."""
    if isinstance(value, str):
        for read in (date.fromisoformat, datetime.fromisoformat, time.fromisoformat):
            try:
                return _moment(read(value.strip().upper()))
            except (ValueError, OverflowError):
                continue
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo is not None else value.replace(tzinfo=UTC)
    if isinstance(value, time):
        return value.replace(tzinfo=None)
    return value if isinstance(value, date) else None


def _same_json(given: Any, expected: Any) -> bool:
    if not isinstance(expected, str):
        return False
    one, other = (write_json(_normal_json(value), canonical=True) for value in (given, read_json(expected)))
    same: bool = one == other
    return same


def _normal_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {_normal(name): _normal_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_normal_json(item) for item in value]
    if isinstance(value, str):
        return _normal(value)
    return Number(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _normal_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.compute.utf8_trim_whitespace(pa.compute.utf8_normalize(column.cast(pa.large_string()), form="NFC"))


def _is_text(kind: pa.DataType) -> bool:
    found: bool = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return found


def _same_texts(given: pa.ChunkedArray, expected: pa.ChunkedArray) -> tuple[int, int]:
    same = pa.compute.equal(_normal_texts(given), _normal_texts(expected))
    return len(expected) - expected.null_count, int(pa.compute.sum(same).as_py() or 0)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without a dictionary, its moments no finer than the microseconds that Python has, and in UTC.

    Seconds stay seconds: as microseconds, those of a far year would be another moment.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        with suppress(pa.ArrowException):  # of values that Arrow cannot spread out: Python reads them one by one
            return _plain(pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], kind.value_type))
    if pa.types.is_timestamp(kind):  # a zone that is known nowhere says nothing about the moment
        unit = "us" if kind.unit == "ns" else kind.unit
        return column.cast(pa.timestamp(unit, tz=kind.tz and "UTC"), safe=False)
    if pa.types.is_time64(kind):
        return column.cast(pa.time64("us"), safe=False)
    return column


def _double_width(kind: pa.DataType) -> type:
    """The type in which doubles are compared: that of the right answers, which may be a short one."""
    return np.float16 if pa.types.is_float16(kind) else np.float32 if pa.types.is_float32(kind) else np.float64
