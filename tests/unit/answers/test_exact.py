"""JSON text becomes values and text again without loss; text that is not JSON is refused."""

from decimal import Decimal
from typing import Any

import pytest

from magbatch.answers.exact import Number, plain_number, read_json, write_json


@pytest.mark.parametrize(
    ("text", "value", "written", "canonical"),
    [
        ("1.10", Number("1.10"), "1.10", "1.1"),
        ("15e-1", Number("1.5"), "1.5", "1.5"),
        ("1e5", Number("1e5"), "1E+5", "100000"),
        ("-0.0", Number("0"), "-0.0", "0"),
        ("5e-324", Number("5e-324"), "5E-324", f"0.{'0' * 323}5"),
        ("12345678901234567890", 12345678901234567890, "12345678901234567890", "12345678901234567890"),
        ("true", True, "true", "true"),
        ("null", None, "null", "null"),
        ('"\\u00e9\\ud83d\\ude00"', "é😀", '"é😀"', '"é😀"'),
        (
            '{"b": [1, 2.0], "a": {}}',
            {"b": [1, Number("2.0")], "a": {}},
            '{"b": [1, 2.0], "a": {}}',
            '{"a":{},"b":[1,2]}',
        ),
    ],
)
def test_nothing_is_lost(text: str, value: Any, written: str, canonical: str) -> None:
    found = read_json(text)
    assert found == value
    assert type(found) is type(value)
    assert write_json(found) == written
    assert write_json(found, canonical=True) == canonical


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("{'a': 1}", "Expecting property name"),
        ("NaN", "NaN is not a JSON number"),
        ("1e999", "the number 1e999 is beyond the range of a double"),
        ("1e-999", "the number 1e-999 is beyond the range of a double"),
        ("0e325", "the number 0e325 is beyond the range of a double"),
        ("1e99999999999999999999", "is beyond the range of a double"),
        ("9" * 5000, "a whole number of 5000 digits is too long"),
        ('{"a": 1, "\\u0061": 2}', 'the key "a" appears twice'),
        ('["\\ud800"]', "a string contains .ud800, half of a character: not valid Unicode"),
        ('{"\\udfff": 1}', "a string contains .udfff"),
    ],
)
def test_text_that_is_not_json_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_json(text)


def test_text_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(RecursionError):
        read_json("[" * 100_000)


def test_a_message_shows_a_number_as_it_was_written() -> None:
    assert repr(read_json("19.90")) == "19.90"


@pytest.mark.parametrize(
    ("number", "text"), [("1.50", "1.5"), ("15e-1", "1.5"), ("100", "100"), ("1e2", "100"), ("-0.00", "0")]
)
def test_equal_numbers_have_one_text(number: str, text: str) -> None:
    assert plain_number(Decimal(number)) == text
