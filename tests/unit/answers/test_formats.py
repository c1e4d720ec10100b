"""Each format of JSON Schema accepts and refuses the right texts; dates and times become values."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time

import pytest

from magbatch.answers import SchemaReader
from magbatch.answers.formats import as_date, as_datetime, as_time
from magbatch.errors import AnswerError


@pytest.mark.parametrize(
    ("name", "fits", "not_fitting"),
    [
        ("iri", "https://münchen.example/straße?q=ß#ä", "https://a b"),
        ("iri", "urn:x", "no scheme"),
        ("iri-reference", "/straße", "a b"),
        ("uri", "https://example.org/a", "https://münchen.example"),
        ("uri-reference", "/a", "/straße"),
        ("uri-template", "/a/{b}", "/a/{b"),
        ("email", "a@b", "a"),
        ("idn-email", "ä@b", "ä"),
        ("hostname", "a.example", "-a"),
        ("idn-hostname", "münchen.example", "a..b"),
        ("ipv4", "1.2.3.4", "1.2.3.4.5"),
        ("ipv6", "::1", ":::1"),
        ("date", "2026-03-01", "2026-3-1"),
        ("date", "2024-02-29", "2026-02-29"),
        ("date", "2026-03-01", "2026-03-01T"),
        ("date-time", "2026-03-01T12:00:00Z", "2026-03-01"),
        ("date-time", "2026-03-01t12:00:00.123456789z", "2026-03-01T12:00:00"),
        ("date-time", "2026-03-01T23:59:60-23:59", "2026-03-01 12:00:00Z"),
        ("time", "12:00:00Z", "12:00:00"),
        ("time", "03:30:30.08z", "03:30Z"),
        ("time", "23:59:60+01:00", "24:00:00Z"),
        ("duration", "P1D", "1 day"),
        ("json-pointer", "/a/0", "a"),
        ("relative-json-pointer", "1/a", "/a"),
        ("regex", "a+", "a("),
        ("regex", "a+", "a{99999999999999999999}"),
        ("uuid", "2eb8aa08-aa98-11ea-b4aa-73b441d16380", "2eb8"),
    ],
)
def test_every_format_of_json_schema_is_checked(name: str, fits: str, not_fitting: str) -> None:
    read = SchemaReader({"type": "object", "properties": {"value": {"type": ["string", "null"], "format": name}}})
    assert read(json.dumps({"value": fits}))["value"] is not None
    assert read('{"value": null}') == {"value": None}
    with pytest.raises(AnswerError, match=f"is not a '{name}'"):
        read(json.dumps({"value": not_fitting}))


def test_dates_and_times_become_values() -> None:
    assert as_date("2026-03-01") == date(2026, 3, 1)
    assert as_time("12:00:00.5+02:00") == time(12, 0, 0, 500_000), "the offset is dropped"
    assert as_time("23:59:60Z") == time(23, 59, 59, 999_999), "a leap second is the last microsecond before it"
    assert as_datetime("2026-01-01t00:30:00.1234567+01:00") == datetime(2025, 12, 31, 23, 30, 0, 123_456, UTC)


@pytest.mark.parametrize(
    ("convert", "text", "said"),
    [
        (as_date, "01.03.2026", "not a full-date of RFC 3339, such as 2026-03-01"),
        (as_date, "2026-02-30", "day"),
        (as_time, "12:00", "not a full-time of RFC 3339, such as 12:00:00Z"),
        (as_datetime, "2026-03-01", "not a date-time of RFC 3339, such as 2026-03-01T12:00:00Z"),
    ],
)  # fmt: skip
def test_a_text_of_another_format_is_refused(convert: Callable[[str], object], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        convert(text)


def test_a_moment_before_the_first_year_is_refused() -> None:
    with pytest.raises(OverflowError):
        as_datetime("0001-01-01T00:00:00+01:00")
