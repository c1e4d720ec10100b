"""Counts and times in the form that every message shows: `1 file`, `2 files`, `1,000 entries`."""

from datetime import datetime


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """Format a count with its noun in singular or plural.

    Args:
        count: Number of things.
        noun: Singular, such as `dead letter`.
        nouns: Plural; None adds an `s` to the singular.
    """
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def shown_time(at: float) -> str:
    """Format a Unix time (seconds) in this machine's time zone: `2026-11-24 06:00:31 UTC`."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
