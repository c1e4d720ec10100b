"""The lease object and its holder, as other commands see them."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magbatch.ledger.holder import (
    EXPIRY_S,
    LeaseRecord,
    LeaseToken,
    holder_of,
    lease_name,
    lease_numbers,
    newest_lease,
)
from magbatch.process import process_space, started_at
from magbatch.storage import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path))


def put(store: Store, record: LeaseRecord, number: int = 1) -> None:
    store.write(lease_name(number), record.to_json())


def test_a_record_is_read_back_as_it_was_written() -> None:
    record = LeaseRecord.of_this_process(("retry", "--set", "a=b"))
    again = LeaseRecord.from_json(record.to_json())
    assert replace(again, id=record.id, beat=record.beat) == record
    assert (record.pid, record.place, record.since) == (os.getpid(), process_space(), started_at(os.getpid()))
    assert "finished" not in json.loads(record.to_json()), "only a released lease says how its command ended"
    assert json.loads(replace(record, finished=False).to_json())["finished"] is False


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"pid": "x"}', b'{"pid": -1}', b'{"at": 1e300}', b'{"command": 7}', b"[" * 100_000],
)
def test_a_damaged_record_is_one_of_an_unknown_holder(store: Store, content: bytes) -> None:
    store.write(lease_name(1), content)
    assert LeaseRecord.from_json(content) == LeaseRecord()
    holder = holder_of(store)
    assert holder is not None
    assert (holder.host, holder.pid, holder.alive) == ("unknown", 0, False)


def test_an_output_without_a_lease_has_no_holder(store: Store) -> None:
    assert holder_of(store) is None
    assert newest_lease(store) is None


def test_a_process_of_this_machine_is_looked_up(store: Store) -> None:
    mine = LeaseRecord.of_this_process(("run",))
    put(store, mine)
    holder = holder_of(store)
    assert holder is not None
    assert (holder.is_here, holder.alive, holder.released, holder.finished) == (True, True, False, True)
    put(store, replace(mine, since="1"))  # another process with this id
    assert not getattr(holder_of(store), "alive", None)


@pytest.mark.parametrize(("age_s", "alive"), [(1.0, True), (2 * EXPIRY_S, False)])
def test_a_holder_on_another_machine_is_alive_while_it_beats(store: Store, age_s: float, alive: bool) -> None:
    put(store, LeaseRecord(host="elsewhere", place="other", pid=7, at=time.time() - age_s))
    holder = holder_of(store)
    assert holder is not None
    assert (holder.host, holder.is_here, holder.alive) == ("elsewhere", False, alive)


@pytest.mark.parametrize("record", [{"host": "old", "pid": 3}, {"host": "old", "pid": 3, "command": []}])
def test_a_record_of_an_older_version_is_a_run(store: Store, record: dict[str, Any]) -> None:
    store.write(lease_name(1), json.dumps(record).encode())
    holder = holder_of(store)
    assert holder is not None
    assert (holder.command, holder.at, holder.finished) == (("run",), None, True)


def test_the_highest_number_is_the_lease(store: Store) -> None:
    for number in (2, 11):
        put(store, LeaseRecord(host=f"host-{number}", pid=1), number)
    store.write("_magbatch/lease-x.json", b"{}")
    assert sorted(lease_numbers(store)) == [2, 11]
    assert newest_lease(store) == (11, LeaseRecord(host="host-11", pid=1).to_json())


def test_a_token_is_lost_once_a_newer_lease_is_there(store: Store) -> None:
    token = LeaseToken(store.root, 2)
    assert not token.is_lost(), "a missing lease does not mean another run"
    put(store, LeaseRecord(), 2)
    assert not token.is_lost()
    put(store, LeaseRecord(), 3)
    assert token.is_lost()
