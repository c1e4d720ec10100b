"""Counts and times as messages show them."""

import time

import pytest

from magbatch.counts import counted, shown_time


@pytest.mark.parametrize(
    ("count", "nouns", "shown"),
    [
        (0, None, "0 files"),
        (1, None, "1 file"),
        (2, None, "2 files"),
        (1000, None, "1,000 files"),
        (2, "fileses", "2 fileses"),
    ],
)
def test_a_noun_follows_its_count(count: int, nouns: str | None, shown: str) -> None:
    assert counted(count, "file", nouns) == shown


def test_a_moment_is_shown_in_this_machines_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Paris")
    time.tzset()
    try:
        assert shown_time(1764054031.9) == "2025-11-25 08:00:31 CET"
    finally:
        monkeypatch.undo()
        time.tzset()
