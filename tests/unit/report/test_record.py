"""The reading of a run's own record, whatever version wrote it."""

import json
from pathlib import Path

import pytest

from magbatch.ledger.layout import RECORD
from magbatch.report.record import last_record, rewrite
from magbatch.storage import open_store

OTHER = {"version": 1, "at": 20.0, "done": 3, "spent": {"device_s": 5.0, "watts": 9}, "mood": {"good": True}}


def test_fields_of_other_versions_are_kept(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write(RECORD, json.dumps(OTHER).encode())
    assert last_record(store) == OTHER
    rewrite(store, failed=1)
    assert json.loads(store.read(RECORD)) == OTHER | {"failed": 1}


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"version": 1}', *(json.dumps(OTHER | wrong).encode() for wrong in (
        {"version": 2}, {"at": "now"}, {"done": -1}, {"spent": {}}, {"replicas": {"serving": "many"}},
    ))],
)  # fmt: skip
def test_a_record_that_cannot_be_parsed_is_none(tmp_path: Path, data: bytes) -> None:
    store = open_store(str(tmp_path))
    store.write(RECORD, data)
    assert last_record(store) is None
    rewrite(store, failed=1)
    assert store.read(RECORD) == data


def test_an_output_without_a_record_gets_none(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    rewrite(store, failed=1)
    assert last_record(store) is None
