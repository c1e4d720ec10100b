"""The formats of JSON Schema 2020-12, held as the engine's grammar holds them; dates and times also become values.

Source: RFC 3339, section 5.6 (`t` and `z` may be lower-case, a minute may have a leap second), with the offsets and
years that the grammar lets through.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from typing import Any
from urllib.parse import quote

from jsonschema import Draft202012Validator, FormatChecker
from rfc3986_validator import validate_rfc3986

_DATE = r"(\d{4})-(\d\d)-(\d\d)"
_TIME = r"([01]\d|2[0-3]):([0-5]\d):([0-5]\d|60)(?:\.(\d+))?(?:([zZ])|([+-])([01]\d|2[0-3]):([0-5]\d))"
_FULL_DATE = re.compile(_DATE, re.ASCII)
_FULL_TIME = re.compile(_TIME, re.ASCII)
_DATE_TIME = re.compile(rf"{_DATE}[tT]({_TIME})", re.ASCII)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def as_date(text: str) -> date:
    """An RFC 3339 full-date; raises ValueError for any other text."""
    found = _FULL_DATE.fullmatch(text)
    if found is None:
        raise ValueError("no full-date of RFC 3339, such as 2026-03-01")
    return date(*map(int, found.groups()))


def as_time(text: str) -> time:
    """An RFC 3339 full-time on its own clock, without the offset; a leap second is the last microsecond before it.

    Raises:
        ValueError: It is another text.
    """
    return _time(text).replace(tzinfo=None)


def as_datetime(text: str) -> datetime:
    """An RFC 3339 date-time in UTC, cut to microseconds; a leap second is the last microsecond before it.

    Raises:
        ValueError: It is another text.
        OverflowError: In UTC it is before the year 1 or after the year 9999.
    """
    found = _DATE_TIME.fullmatch(text)
    if found is None:
        raise ValueError("no date-time of RFC 3339, such as 2026-03-01T12:00:00Z")
    day = date(*map(int, found.group(1, 2, 3)))
    return datetime.combine(day, _time(found[4])).astimezone(UTC)


def _time(text: str) -> time:
    found = _FULL_TIME.fullmatch(text)
    if found is None:
        raise ValueError("no full-time of RFC 3339, such as 12:00:00Z")
    hour, minute, second, fraction, zulu, sign, hours, minutes = found.groups()
    offset = timedelta() if zulu else timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if sign == "-" else 1)
    microsecond = int((fraction or "")[:6].ljust(6, "0"))
    if second == "60":
        second, microsecond = "59", 999_999
    return time(int(hour), int(minute), int(second), microsecond, timezone(offset))


def _checked_by(convert: Callable[[str], Any]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        return not isinstance(value, str) or convert(value) is not None

    return check


def _iri(rule: str) -> Callable[[object], bool]:
    """An IRI is a URI once its other characters are percent-encoded (RFC 3987, section 3.1)."""

    def check(value: object) -> bool:
        encoded = _NOT_ASCII.sub(lambda found: quote(found[0]), str(value))
        return not isinstance(value, str) or validate_rfc3986(encoded, rule=rule) is not None

    return check


def format_checker() -> FormatChecker:
    """All formats of the draft. Not jsonschema's default, in which a name may mean what an older draft meant by it."""
    checker = FormatChecker(())
    checks = {name: check for name, (check, _) in Draft202012Validator.FORMAT_CHECKER.checkers.items()}
    checks |= {"date": _checked_by(as_date), "time": _checked_by(as_time), "date-time": _checked_by(as_datetime)}
    checks |= {"iri": _iri("URI"), "iri-reference": _iri("URI_reference")}
    # A value's boundary: parsers of others raise much more than they say.
    checker.checkers = {name: (check, Exception) for name, check in checks.items()}
    return checker
