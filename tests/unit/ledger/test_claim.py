"""Taking the lease of an output."""

from dataclasses import replace
from pathlib import Path

import pytest

from magbatch.errors import LeaseError, StorageError
from magbatch.ledger.claim import Claim
from magbatch.ledger.holder import LeaseRecord, LeaseTiming, lease_name, lease_numbers
from magbatch.storage import Store, open_store

SHORT = LeaseTiming(beat_s=0.05, expiry_s=0.1, look_s=0.01)
ELSEWHERE = LeaseRecord(host="elsewhere", place="other", pid=7, since="1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def claim(store: Store, said: list[str]) -> Claim:
    return Claim(store, LeaseRecord.of_this_process(("run",)), 1.0, said.append, SHORT)


def test_the_first_claim_of_an_output_takes_lease_1(store: Store) -> None:
    said: list[str] = []
    mine = claim(store, said)
    assert (mine.take(), mine.inherited, said) == (1, False, [])
    assert lease_numbers(store) == [1]


def test_a_released_lease_is_followed_at_once(store: Store) -> None:
    said: list[str] = []
    store.write(lease_name(4), replace(ELSEWHERE, released=True).to_json())
    mine = claim(store, said)
    assert (mine.take(), mine.inherited, said) == (5, False, [])
    assert lease_numbers(store) == [5]


def test_a_silent_holder_is_waited_for_and_its_lease_inherited(store: Store) -> None:
    said: list[str] = []
    store.write(lease_name(4), ELSEWHERE.to_json())
    mine = claim(store, said)
    assert (mine.take(), mine.inherited) == (5, True)
    (line,) = said
    assert line == (
        "output was last held by host elsewhere, process 7; waiting 0 s for its heartbeat before taking over"
    )
    assert [item.name for item in store.list("_magbatch/")] == [lease_name(5)], "the watcher's file is gone"


def test_a_live_holder_of_this_machine_is_named(store: Store) -> None:
    claim(store, []).take()
    with pytest.raises(LeaseError, match=r"another run is working on it .*magbatch status"):
        claim(store, []).take()


def test_a_missing_bucket_is_a_mistake_and_a_full_disk_only_at_first(store: Store) -> None:
    full, away, gone = StorageError("full"), StorageError("503", passing=True), StorageError("no bucket", passing=True)
    full.full, gone.missing_root = True, True
    mine = claim(store, [])
    mine.take()
    assert (mine.is_mistake(full), mine.is_mistake(away), mine.is_mistake(gone)) == (True, False, True)
    store.write(lease_name(1), replace(ELSEWHERE, released=True).to_json())
    later = claim(store, [])
    later.take()
    assert (later.is_mistake(full), later.is_mistake(gone)) == (False, True)
