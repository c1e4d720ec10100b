"""Strict JSON: every wrong value is an error that names its field."""

from collections.abc import Callable
from typing import Any

import pytest

from magbatch.ledger.strict_json import (
    Fields,
    list_of,
    parse,
    read_checksum,
    read_counts,
    read_items,
    read_text,
    read_whole,
    shown,
)


def test_fields_are_read_once_and_none_may_be_left() -> None:
    fields = Fields({"name": "x", "rows": [1, 2], "more": 3}, "file")
    assert fields.take("name", read_text) == "x"
    assert fields.may_have("absent", read_text) is None
    assert fields.take("rows", list_of(read_whole)) == (1, 2)
    with pytest.raises(ValueError, match=r"file\.name is missing"):
        fields.take("name", read_text)
    with pytest.raises(ValueError, match=r"file\.more is an unknown field"):
        fields.end()


@pytest.mark.parametrize(
    ("read", "value", "message"),
    [
        (read_text, 7, "f is 7, not text"),
        (read_whole, True, "f is true, not a whole number from 0"),
        (read_whole, -1, "f is -1, not a whole number from 0"),
        (read_whole, 1.0, "f is 1.0, not a whole number from 0"),
        (read_checksum, "a" * 63, "not a SHA-256 in hex"),
        (read_counts, {"x": "1"}, 'f.x is "1", not a whole number from 0'),
        (read_items, {}, "f is an object, not a list"),
        (list_of(read_text), ["x", None], "f[1] is null, not text"),
        (lambda value, path: Fields(value, path), [], "f is a list, not an object"),
    ],
)
def test_a_wrong_value_is_named(read: Callable[[Any, str], Any], value: Any, message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the message is compared below
        read(value, "f")
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": -Infinity}', "{"])
def test_json_that_two_readers_may_read_differently_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse(text)


def test_a_shown_value_is_short_and_harmless() -> None:
    assert shown("\x1b]52;c;evil\x07").isprintable()
    assert len(shown("x" * 1000)) == 60
    assert (shown([1]), shown({"a": 1})) == ("a list", "an object")
