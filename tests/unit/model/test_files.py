"""The cache is in the home of the user, or where the environment says."""

from pathlib import Path

import pytest

from magbatch.model.files import cache_dir


def test_the_cache_is_in_the_home_unless_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAGBATCH_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/magbatch")
