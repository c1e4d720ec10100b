r"""Text from rows, files and servers never controls a terminal: control characters are shown as escapes (`\x1b`).

Prompts, answers, logs, file names and records of other machines may hold any characters.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# Control characters except newline and tab, overrides of the writing direction, and lone surrogates.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str) -> str:
    r"""Replace control characters with escapes; newlines and tabs stay.

    >>> visible("\x1b]52;c;aGk=\x07hi\n")
    '\\x1b]52;c;aGk=\\x07hi\n'
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def uncoloured(text: str) -> str:
    """Remove colours from terminal output, and put each overwritten line on a line of its own."""
    return _COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def json_text(data: Any, indent: int | None = None) -> str:
    """Serialise to JSON that cannot control a terminal. (`json` leaves DEL and U+0080 to U+009F as they are.)"""
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    return _STEERING.sub(lambda found: found[0] if found[0] < " " else f"\\u{ord(found[0]):04x}", text)


class _Visible:
    """A stream that makes written text visible, and passes everything else to the wrapped stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Make everything visible that the block prints to stdout and stderr."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, _Visible) else cast(TextIO, _Visible(stream)) for stream in before
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
