"""The formats of JSON Schema 2020-12, checked by the rules of the engine's grammar. Dates and times become values too.

Source: RFC 3339, section 5.6 (`t` and `z` may be lower-case, a minute may have a leap second), with all offsets and
years that the grammar allows.
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
    """Parse an RFC 3339 full-date.

    Raises:
        ValueError: The text is not a full-date.
    """
    found = _FULL_DATE.fullmatch(text)
    if found is None:
        raise ValueError("not a full-date of RFC 3339, such as 2026-03-01")
    return date(*map(int, found.groups()))


def as_time(text: str) -> time:
    """Parse an RFC 3339 full-time. The offset is dropped; a leap second becomes 59.999999 s.

    Raises:
        ValueError: The text is not a full-time.
    """
    return _time(text).replace(tzinfo=None)


def as_datetime(text: str) -> datetime:
    """Parse an RFC 3339 date-time into UTC, cut to microseconds; a leap second becomes 59.999999 s.

    Raises:
        ValueError: The text is not a date-time.
        OverflowError: The date-time in UTC is before the year 1 or after the year 9999.
    """
    found = _DATE_TIME.fullmatch(text)
    if found is None:
        raise ValueError("not a date-time of RFC 3339, such as 2026-03-01T12:00:00Z")
    day = date(*map(int, found.group(1, 2, 3)))
    return datetime.combine(day, _time(found[4])).astimezone(UTC)


def _time(text: str) -> time:
    found = _FULL_TIME.fullmatch(text)
    if found is None:
        raise ValueError("not a full-time of RFC 3339, such as 12:00:00Z")
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
    """Check of an IRI: a URI after its non-ASCII characters are percent-encoded (RFC 3987, section 3.1)."""

    def check(value: object) -> bool:
        encoded = _NOT_ASCII.sub(lambda found: quote(found[0]), str(value))
        return not isinstance(value, str) or validate_rfc3986(encoded, rule=rule) is not None

    return check


def format_checker() -> FormatChecker:
    """Checker of all formats of draft 2020-12. Jsonschema's default checker mixes in meanings of older drafts."""
    checker = FormatChecker(())
    checks = {name: check for name, (check, _) in Draft202012Validator.FORMAT_CHECKER.checkers.items()}
    checks |= {"date": _checked_by(as_date), "time": _checked_by(as_time), "date-time": _checked_by(as_datetime)}
    checks |= {"iri": _iri("URI"), "iri-reference": _iri("URI_reference")}
    # The boundary of a value: third-party parsers raise undocumented exceptions.
    checker.checkers = {name: (check, Exception) for name, check in checks.items()}
    return checker
