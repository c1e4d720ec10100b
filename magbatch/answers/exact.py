"""JSON text to values and back without loss: decimals stay exact, and text that is not JSON is refused."""

import json
import math
import re
from decimal import Decimal
from typing import Any

MAX_NAME_CHARS = 80  # characters of a key or number in a message
# Largest exponent of a double, whose smallest number is 5e-324. A zero with a larger exponent would be written in as
# many digits.
MAX_EXPONENT = 324
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class Number(Decimal):
    """A number with a point or an exponent, exact in every digit. Messages show it as it was written."""

    __slots__ = ()
    __repr__ = Decimal.__str__


def read_json(text: str) -> Any:
    """Parse a JSON text. A number with a point or an exponent becomes a `Number`, any other number an `int`.

    Raises:
        ValueError: The text is not JSON (RFC 8259), a key is repeated, a number exceeds a double's range, or a string
            is not valid Unicode.
        RecursionError: The text is nested too deeply.
    """
    value = json.loads(
        text, parse_float=_number, parse_int=_integer, parse_constant=_constant, object_pairs_hook=_object
    )
    if _ESCAPED_SURROGATE.search(text):
        _check_text(value)
    return value


def write_json(value: Any, *, canonical: bool = False) -> str:
    """Write a value of `read_json` as JSON text.

    Args:
        value: Value as `read_json` returns it.
        canonical: Whether equal values give equal texts: sorted keys, no blanks, and `1.5` for `1.50` and `15e-1`.

    Raises:
        RecursionError: The value is nested too deeply.
    """
    comma, colon = (",", ":") if canonical else (", ", ": ")
    if isinstance(value, dict):
        items = sorted(value.items()) if canonical else value.items()
        members = (f"{write_json(name)}{colon}{write_json(item, canonical=canonical)}" for name, item in items)
        return "{" + comma.join(members) + "}"
    if isinstance(value, list):
        return "[" + comma.join(write_json(item, canonical=canonical) for item in value) + "]"
    if isinstance(value, Decimal):
        return plain_number(value) if canonical else str(value)
    return json.dumps(value, ensure_ascii=False)


def plain_number(value: Decimal) -> str:
    """Write a number without exponent and without trailing zeros: equal numbers give equal texts.

    Example:
        `plain_number(Decimal("1.50"))` is "1.5", and so is `plain_number(Decimal("15e-1"))`.
    """
    if not value:
        return "0"
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:  # Python refuses to parse more than 4300 digits
        raise ValueError(f"a whole number of {len(text)} digits is too long") from error


def _number(text: str) -> Number:
    try:
        number, double = Number(text), float(text)
        within = math.isfinite(double) and (double != 0 or number == 0) and abs(number.adjusted()) <= MAX_EXPONENT
    except ArithmeticError:  # an exponent that Decimal cannot hold
        within = False
    if not within:
        raise ValueError(f"the number {text[:MAX_NAME_CHARS]} is beyond the range of a double")
    return number


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {json.dumps(twice)[:MAX_NAME_CHARS]} appears twice")
    return found


def _check_text(value: Any) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _check_text(name)
            _check_text(item)
    elif isinstance(value, list):
        for item in value:
            _check_text(item)
    elif isinstance(value, str) and (found := _SURROGATE.search(value)):
        raise ValueError(f"a string contains \\u{ord(found[0]):x}, half of a character: not valid Unicode")
