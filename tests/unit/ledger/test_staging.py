"""Staged files come to their places with the manifest that names them."""

from pathlib import Path

import pytest

from magbatch.ledger.layout import PAGE, REPORT, STAGED
from magbatch.ledger.manifest import Manifest
from magbatch.ledger.staging import is_staged, place, read_named, settle, stage, staged
from magbatch.storage import Store, open_store
from magbatch.totals import Totals

NEW = {REPORT: b"new report", PAGE: b"new page"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path))
    store.write(REPORT, b"old report")
    return store


def naming(store: Store) -> Manifest:
    """A manifest that names the new files, which are staged."""
    files = stage(store, NEW)
    return Manifest("1", "job", "2026-01-01T00:00:00+00:00", 0, "0" * 64, Totals(), (), files)


def test_staged_files_change_nothing_until_they_are_placed(store: Store) -> None:
    manifest = naming(store)
    assert store.read(REPORT) == b"old report"
    assert len(staged(store)) == 2
    assert all(is_staged(store, file) for file in manifest.files)
    assert read_named(store, manifest, REPORT) == b"new report", "the manifest names the staged file"
    place(store, manifest, [REPORT])
    assert store.read(REPORT) == read_named(store, manifest, REPORT) == b"new report"
    assert [is_staged(store, file) for file in manifest.files] == [False, True]


def test_the_next_command_settles_what_was_staged(store: Store) -> None:
    manifest = naming(store)
    store.write(f"{STAGED}{'1' * 64}-report.json", b"of no manifest")
    found = staged(store)
    store.write(f"{STAGED}{'2' * 64}-report.json", b"of a command that came later")
    settle(store, manifest, found)
    assert {name: store.read(name) for name in NEW} == NEW
    assert staged(store) == [f"{STAGED}{'2' * 64}-report.json"]


def test_a_file_that_the_manifest_does_not_vouch_for_is_not_read(store: Store) -> None:
    manifest = naming(store)
    settle(store, manifest, staged(store))
    store.write(REPORT, b"edited")
    with pytest.raises(FileNotFoundError):
        read_named(store, manifest, REPORT)
