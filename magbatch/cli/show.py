"""Printing that all commands share: lines, JSON documents, notes, progress. A `show_*` module prints one family.

Results go to standard output. Notes, warnings and progress go to standard error.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from magbatch.terminal import json_text, visible

if TYPE_CHECKING:
    from rich.console import Console


def say(*lines: str) -> None:
    """Print lines of a result on standard output."""
    for line in lines:
        print(line)


def say_indented(lines: Iterable[str]) -> None:
    """Print lines below a heading."""
    for line in lines:
        say(f"  {line}")


def say_next(command: str) -> None:
    """Print the command to run next; the last line of a command's output."""
    say(f"Next: {command}")


def note(*lines: str) -> None:
    """Print lines for a person on standard error: programs read standard output."""
    for line in lines:
        print(line, file=sys.stderr)


def print_text(text: str, *, flush: bool = False) -> None:
    """Print a text as it is, without a newline at its end.

    Args:
        text: The text.
        flush: Whether it must reach the terminal at once.
    """
    print(text, end="", flush=flush)


def print_json(data: Any, indent: int | None = 1) -> None:
    """Print one JSON document for a program on standard output."""
    print(json_text(data, indent))


def counter(what: str, every_s: float = 5.0) -> Callable[[int, int], None]:
    """Progress of a long command on standard error, such as `12,000 of 40,000 objects checked`.

    Args:
        what: Words after the numbers.
        every_s: Seconds between two lines, and before the first.

    Returns:
        Function that takes the number done and the number of all.
    """
    shown = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= every_s:
            shown = time.monotonic()
            note(f"{done:,} of {total:,} {what}")

    return show


@contextmanager
def live_console() -> Iterator["Console"]:
    """Console for progress, on a copy of standard error.

    Ray and native code may redirect standard error, so the copy keeps their output off the live line. The console may
    send control sequences to the terminal; control characters in printed texts are shown as escapes.
    """
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def print(self, *objects: Any, **more: Any) -> None:
            super().print(*map(plain, objects), **more)

    def plain(item: Any) -> Any:
        if isinstance(item, Text):  # printed by a thread while the live line is shown
            return Text("\n").join(Text(visible(line.plain), line.style) for line in item.split("\n"))
        return visible(item) if isinstance(item, str) else item

    with os.fdopen(os.dup(2), "w") as stderr:
        yield Plain(file=stderr)
