"""Counts with their nouns, and moments, as every message shows them: `1 file`, `2 files`, `1,000 entries`."""

from datetime import datetime


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """A count and its noun in the right number.

    Args:
        count: The count.
        noun: For one: `dead letter`.
        nouns: For any other count; left out, the noun with an `s`.
    """
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def shown_time(at: float) -> str:
    """A moment (Unix time, s) for people, in this machine's time zone: `2026-11-24 06:00:31 UTC`."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
