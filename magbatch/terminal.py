r"""Text reaches a terminal as text: what would steer it is shown as an escape (`\x1b`).

Prompts, answers, logs, file names and records of other machines hold whatever their writers wanted.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

# Control characters but newline and tab, overrides of the direction of writing, and what is no text at all.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str) -> str:
    r"""A text whose control characters are escapes; newlines and tabs stay.

    >>> visible("\x1b]52;c;aGk=\x07hi\n")
    '\\x1b]52;c;aGk=\\x07hi\n'
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def uncoloured(text: str) -> str:
    """A text that was printed for a terminal, without its colours, and with a line for each that was overwritten."""
    return _COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def json_text(data: Any, indent: int | None = None) -> str:
    """A JSON document in which nothing steers a terminal: `json` itself leaves DEL and U+0080 to U+009F as they are."""
    text = json.dumps(data, indent=indent, ensure_ascii=False)
    return _STEERING.sub(lambda found: found[0] if found[0] < " " else f"\\u{ord(found[0]):04x}", text)


class _Visible:
    """A stream whose texts are visible; all else is the stream's own."""

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
    """Within it, all that is printed to stdout and stderr is visible."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, _Visible) else cast(TextIO, _Visible(stream)) for stream in before
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
