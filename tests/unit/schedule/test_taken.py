"""The index of taken files is believed only for runs whose end record is unchanged."""

from pathlib import Path

import pytest

from magbatch.ledger.layout import TAKEN
from magbatch.schedule.taken import TakenIndex
from magbatch.storage import open_store

ENDS = {"20261124T050000Z": "tag-1", "20261125T050000Z": "tag-2"}
FILES = {("in/a.parquet", 10, "x"), ("in/b.parquet", 20, "y")}


def store_index(folder: Path) -> None:
    store = open_store(str(folder))
    index = TakenIndex.load(store, {})
    index.extended({"20261124T050000Z": FILES, "20261125T050000Z": set()}, ENDS).store(store)


def test_an_index_gives_back_its_files(tmp_path: Path) -> None:
    store_index(tmp_path)
    found = TakenIndex.load(open_store(str(tmp_path)), ENDS)
    assert found.ticks() == set(ENDS)
    assert found.files() == FILES


def test_a_run_whose_end_was_recorded_again_is_left_out(tmp_path: Path) -> None:
    store_index(tmp_path)
    found = TakenIndex.load(open_store(str(tmp_path)), ENDS | {"20261124T050000Z": "tag-3"})
    assert found.ticks() == {"20261125T050000Z"}
    assert found.files() == set()


@pytest.mark.parametrize("data", [None, b"", b"PAR1 no Parquet"])
def test_a_missing_or_damaged_index_is_empty(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        open_store(str(tmp_path)).write(TAKEN, data)
    assert TakenIndex.load(open_store(str(tmp_path)), ENDS).ticks() == set()
