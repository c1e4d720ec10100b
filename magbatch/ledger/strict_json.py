"""Strict reading of JSON: every wrong value is an error that names the path of its field.

A reader is a function of a value and its path. It returns the typed value or raises ValueError.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_SHOWN_CHARS = 60
T = TypeVar("T")


class Fields:
    """The fields of one JSON object, each taken once.

    Args:
        value: Parsed JSON.
        path: Path of the object in its document; empty for the whole document.

    Raises:
        ValueError: The value is not a JSON object.
    """

    def __init__(self, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{path or 'it'} is {shown(value)}, not an object")
        self._left, self._path = dict(value), f"{path}." if path else ""

    def take(self, name: str, read: Callable[[Any, str], T]) -> T:
        """Read a required field."""
        if name not in self._left:
            raise ValueError(f"{self._path}{name} is missing")
        return read(self._left.pop(name), f"{self._path}{name}")

    def may_have(self, name: str, read: Callable[[Any, str], T]) -> T | None:
        """Read an optional field; None if it is missing."""
        return self.take(name, read) if name in self._left else None

    def end(self) -> None:
        """Refuse fields that were not read."""
        for name in self._left:
            raise ValueError(f"{self._path}{shown(name)[1:-1]} is an unknown field")


def parse(text: str) -> Any:
    """Parse a JSON document; a repeated field, NaN and Infinity are errors."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)


def read_text(value: Any, path: str) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise ValueError(f"{path} is {shown(value)}, not text")
    return value


def read_whole(value: Any, path: str) -> int:
    """Read a whole number from 0; true and false are not numbers."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{path} is {shown(value)}, not a whole number from 0")
    return value


def read_checksum(value: Any, path: str) -> str:
    """Read a SHA-256 checksum."""
    if not isinstance(value, str) or not SHA256.match(value):
        raise ValueError(f"{path} is {shown(value)}, not a SHA-256 in hex")
    return value


def read_counts(value: Any, path: str) -> dict[str, int]:
    """Read an object whose values are whole numbers."""
    found = Fields(value, path)
    return {name: found.take(name, read_whole) for name in value}


def read_items(value: Any, path: str) -> list[Any]:
    """Read a list without reading its items."""
    if not isinstance(value, list):
        raise ValueError(f"{path} is {shown(value)}, not a list")
    return value


def list_of(read: Callable[[Any, str], T]) -> Callable[[Any, str], tuple[T, ...]]:
    """Make a reader of lists from a reader of their items."""
    return lambda value, path: tuple(
        read(item, f"{path}[{index}]") for index, item in enumerate(read_items(value, path))
    )


def shown(value: Any) -> str:
    """A value for a message: short, and harmless to a terminal."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(twice)[1:-1]} appears twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"it has {name}, which is not a JSON number")
