"""The comparison of a job's answers with the right answers in its input, if the input has them.

The vote is compared, else the extracted text, else the schema's only property, else the answer's text. Numbers are
equal if their values are (19.90 and 19.9). Upper and lower case of booleans does not matter. Texts are compared after
trimming and Unicode normalisation (NFC). Null is never right.
"""

import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute

from magbatch.answers.exact import Number, read_json, write_json
from magbatch.arrow_types import ChunkedArray, DictionaryArray, Scalar
from magbatch.spec import JobSpec, properties

RULE = 3  # version of the rules for equality; a manifest records the version of its counts
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Grading:
    """The two columns that are compared.

    Attributes:
        expected: Output column with the right answers.
        given: Output column with the job's answers.
        name: The schema's only property, if `given` contains the whole answer as JSON; else None.
        as_json: Whether `given` contains JSON text.
    """

    expected: str
    given: str = "answer"
    name: str | None = None
    as_json: bool = False

    @classmethod
    def of(cls, spec: JobSpec, expected: str | None) -> Self | None:
        """Grading of a job; None if the input has no right answers.

        Args:
            spec: Spec of the job, for the columns that hold its answers.
            expected: Output column with the right answers; None if there is none.
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
        # The answer itself is read, because the property's own column may contain JSON text.
        return cls(expected, "answer", one, as_json=answer.schema is not None)

    def __call__(self, table: pa.Table) -> tuple[int, int]:
        """Count the right answers of an object.

        A vote is one answer for all samples of a row, and counts once. A pair that cannot be compared is not right.

        Args:
            table: Table with the columns `sample`, `given` and `expected`.

        Returns:
            Number of records with a known right answer, and number of these whose answer is right.
        """
        table = table.select(list(dict.fromkeys(["sample", self.given, self.expected])))
        if self.given == "vote":
            table = table.filter(pa.compute.equal(table.column("sample"), pa.scalar(0)))
        expected = _plain(table.column(self.expected))
        given = table.column(self.given)
        given = pa.compute.struct_field(given, "answer") if pa.types.is_struct(given.type) else _plain(given)
        if not self.as_json and _is_text(expected.type) and _is_text(given.type):
            with suppress(pa.ArrowException):  # a text is not UTF-8: compare each pair on its own
                return _same_texts(given, expected)
        width = _double_width(expected.type)
        found = [self._right(*pair, width) for pair in zip(given, expected, strict=True)]
        return sum(one is not None for one in found), sum(one is True for one in found)

    def _right(self, given: Scalar, expected: Scalar, width: type) -> bool | None:
        """Whether an answer is right; None if no right answer is known.

        Args:
            given: Answer of the job.
            expected: Right answer from the input.
            width: NumPy float type in which doubles are compared.
        """
        try:
            wanted = expected.as_py() if expected.is_valid else None
            if wanted is None:
                return None
            return self._same(given.as_py(), wanted, width)
        except Exception:  # noqa: BLE001 - a pair's boundary: Arrow has days, such as in the year 29348, that Python cannot hold
            return False

    def _same(self, given: Any, expected: Any, width: type) -> bool:
        if given is not None and self.as_json:
            given = read_json(given)  # stored by an older version, the text may not be JSON
            if self.name is not None:
                given = given.get(self.name) if isinstance(given, dict) else None
        return given is not None and _equal(given, expected, width)


def _equal(given: Any, expected: Any, width: type = np.float64) -> bool:
    """Whether two values are equal. A text is parsed as the type of the other value.

    Examples:
        "19.90" and 19.9 are equal, "TRUE" and True are equal, "7" and True are not.
    """
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
    """Parse a date, a time without its offset, or a date-time in UTC; None for any other value."""
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


def _normal_texts(column: ChunkedArray) -> ChunkedArray:
    normal: ChunkedArray = pa.compute.utf8_normalize(  # type: ignore[attr-defined]  # not in the stubs
        column.cast(pa.large_string()), form="NFC"
    )
    return pa.compute.utf8_trim_whitespace(normal)


def _is_text(kind: pa.DataType) -> bool:
    found: bool = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return found


def _same_texts(given: ChunkedArray, expected: ChunkedArray) -> tuple[int, int]:
    same: Any = pa.compute.equal(_normal_texts(given), _normal_texts(expected))
    return len(expected) - expected.null_count, int(pa.compute.sum(same).as_py() or 0)


def _plain(column: ChunkedArray) -> ChunkedArray:
    """Copy of a column without a dictionary, with times in UTC and in microseconds at most, as Python holds them.

    Seconds stay seconds: a year far in the future would overflow in microseconds.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        with suppress(pa.ArrowException):  # values that Arrow cannot decode are read one by one in Python
            chunks = [cast(DictionaryArray, chunk).dictionary_decode() for chunk in column.chunks]
            return _plain(pa.chunked_array(chunks, kind.value_type))
    if pa.types.is_timestamp(kind):  # an unknown zone name does not change the instant
        unit: Any = "us" if kind.unit == "ns" else kind.unit
        return column.cast(pa.timestamp(unit, tz=kind.tz and "UTC"), safe=False)
    if pa.types.is_time64(kind):
        return column.cast(pa.time64("us"), safe=False)
    return column


def _double_width(kind: pa.DataType) -> type:
    """NumPy float type in which doubles are compared: the type of the right answers, which may have fewer bits."""
    return np.float16 if pa.types.is_float16(kind) else np.float32 if pa.types.is_float32(kind) else np.float64
