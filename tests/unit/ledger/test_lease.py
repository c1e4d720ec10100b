"""Only a single run at a time works on an output, on a disk and in object storage alike."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magbatch.errors import LeaseError, OutputError, StorageError
from magbatch.ledger.holder import LeaseTiming
from magbatch.ledger.layout import LEASES
from magbatch.ledger.lease import Lease
from magbatch.storage import Store, open_store


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


# Expiry is eight beats: a slow test machine may delay several.
SHORT = LeaseTiming(beat_s=0.05, expiry_s=0.4, look_s=0.02)


def lease_on(store: Store, say: Callable[[str], None], patience_s: float = 0.0, **times: float) -> Lease:
    """A lease with short durations."""
    return Lease(store, say, patience_s, timing=replace(SHORT, **times))


def elsewhere(lease: Lease) -> Lease:
    """The lease of a command on another machine."""
    lease._record = replace(lease._record, place="another machine")
    return lease


def names(store: Store) -> list[str]:
    return [item.name for item in store.list(LEASES)]


def forge(store: Store, number: int = 1, **fields: object) -> None:
    """A lease as another machine would have written it."""
    record = {"id": "x", "host": "elsewhere", "place": "other", "pid": 7, "since": "1", "beat": 0, "released": False}
    store.write(f"{LEASES}{number:08d}.json", json.dumps(record | fields).encode())


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_run_of_this_machine_that_is_alive_is_refused_at_once(store: Store, said: list[str]) -> None:
    with lease_on(store, said.append).acquire():
        with pytest.raises(LeaseError) as refused, lease_on(store, said.append).acquire():
            pytest.fail("two runs hold one output")
        assert f"process {os.getpid()}" in str(refused.value)
        assert refused.value.exit_code == 3
    assert said == []
    with lease_on(store, said.append).acquire():
        assert len(names(store)) == 1
    assert said == []


def test_a_live_run_stays_one_when_the_clock_is_set(
    store: Store, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """psutil's time of creation moves with the clock: what is compared must not."""
    with lease_on(store, said.append).acquire():
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 1.0)
        with pytest.raises(LeaseError), lease_on(store, said.append).acquire():
            pytest.fail("two runs hold one output")


def test_a_run_of_this_machine_that_was_killed_is_no_hindrance(store: Store, said: list[str], root: str) -> None:
    code = (
        "import os, sys; from magbatch.ledger.lease import Lease; from magbatch.storage import open_store\n"
        "with Lease(open_store(sys.argv[1]), print).acquire(): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, root], check=False)
    assert killed.returncode == -9
    assert len(names(store)) == 1
    with lease_on(store, said.append).acquire():
        assert said == []


def test_a_run_elsewhere_that_gives_signs_of_life_is_refused(store: Store, said: list[str]) -> None:
    forge(store)
    over = threading.Event()

    def beat() -> None:
        for number in range(100):
            if over.wait(0.1):
                return
            forge(store, beat=number + 1)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(LeaseError, match="host elsewhere, process 7"), lease_on(store, said.append).acquire():
            pytest.fail("two runs hold one output")
    finally:
        over.set()
        beating.join()
    assert ["elsewhere" in line for line in said] == [True]


def test_a_run_elsewhere_without_a_sign_of_life_is_taken_over(store: Store, said: list[str]) -> None:
    forge(store, number=4)
    began = time.monotonic()
    with lease_on(store, said.append).acquire():
        assert time.monotonic() - began >= SHORT.expiry_s
        assert names(store) == [f"{LEASES}00000005.json"]


def test_a_run_elsewhere_that_has_ended_is_no_hindrance(store: Store, said: list[str]) -> None:
    forge(store, released=True)
    with lease_on(store, said.append).acquire():
        assert said == []


def test_a_holder_that_is_taken_over_notices(store: Store, said: list[str]) -> None:
    lease = lease_on(store, said.append)
    with lease.acquire():
        lease.check()
        lease.confirm()
        forge(store, number=9)
        with pytest.raises(LeaseError, match="host elsewhere, process 7"):
            lease.confirm()
        with pytest.raises(LeaseError):
            lease.check()
    assert json.loads(store.read(f"{LEASES}00000009.json"))["released"] is False, "it is the other's to release"


def test_a_holder_notices_by_itself(store: Store, said: list[str]) -> None:
    lease = lease_on(store, said.append)
    with lease.acquire():
        forge(store, number=9)
        with pytest.raises(LeaseError):
            check_for(lease, seconds=30)


def check_for(lease: Lease, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lease.check()
        time.sleep(0.01)


def test_one_of_many_that_come_at_once_gets_it(store: Store) -> None:
    forge(store, number=3, released=True)
    start, done = threading.Barrier(8), threading.Barrier(8)
    held: list[int] = []
    refused: list[LeaseError] = []

    def come(number: int) -> None:
        start.wait()
        try:
            with lease_on(store, lambda _: None).acquire():
                held.append(number)
                done.wait()
        except LeaseError as error:
            refused.append(error)
            done.wait()

    threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(held), len(refused)) == (1, 7)


def test_a_place_that_cannot_be_written_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"output\.path: .*file"),
        lease_on(open_store(str(tmp_path / "file")), print).acquire(),
    ):
        pytest.fail("nothing can be held here")


@pytest.mark.parametrize(
    ("place", "named"),
    [("/proc/none/out", "/proc/none/out"), ("s3://no-such-bucket/out", "s3://no-such-bucket: there")],
)
def test_a_place_that_cannot_be_made_is_said_at_once(s3_endpoint: str, said: list[str], place: str, named: str) -> None:
    with (
        pytest.raises(OutputError, match=f"output.path: {named}") as refused,
        lease_on(open_store(place), said.append, expiry_s=3600.0).acquire(),
    ):
        pytest.fail("nothing can be held here")
    assert (refused.value.exit_code, said) == (2, [])


# Stores that refuse for longer than a lease lives.


class Away:
    """A store that refuses some of its calls while `calls` names them.

    Args:
        store: The real one.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.root = store, store.root
        self.calls: set[str] = set()
        self.refused = 0

    def __getattr__(self, call: str) -> Any:
        real = getattr(self.store, call)

        def act(*arguments: Any) -> Any:
            if call in self.calls:
                self.refused += 1
                raise StorageError(f"503 SlowDown: {call}", passing=True)
            return real(*arguments)

        return act


EVERYTHING = {"read", "write", "create", "list", "delete"}
WRITES = {"write", "create", "delete"}  # as a disk that is full does, or a store that is only read


@pytest.fixture
def away(store: Store) -> Away:
    return Away(store)


@pytest.mark.parametrize("calls", [EVERYTHING, WRITES], ids=["everything", "writes"])
def test_an_outage_longer_than_a_lease_lives_takes_it_from_no_one(away: Away, said: list[str], calls: set[str]) -> None:
    """The holder cannot renew its lease, and a run that waits for it cannot write either."""
    store: Any = away
    holder = lease_on(store, said.append, patience_s=60)
    with holder.acquire():

        def outage(waiting: str) -> None:
            away.calls.update(calls)
            threading.Timer(2.2 * SHORT.expiry_s, away.calls.clear).start()

        watcher = elsewhere(lease_on(store, outage, patience_s=60))
        with pytest.raises(LeaseError, match="another run is working on it"), watcher.acquire():
            pytest.fail("a run that beats whenever it can was taken over")
        assert away.refused > 0
        holder.confirm()
    assert [item.name for item in store.list("_magbatch/watch-")] == []


def test_a_holder_waits_as_long_as_the_outputs_patience_says(away: Away, said: list[str]) -> None:
    store: Any = away
    lease = lease_on(store, said.append, patience_s=30)
    with lease.acquire():
        away.calls = set(EVERYTHING)
        threading.Timer(2 * SHORT.expiry_s, away.calls.clear).start()
        lease.confirm()
        assert "the output's storage refuses, trying again: 503 SlowDown: list" in said
        lease.check()


def test_a_take_over_that_is_refused_at_its_last_moment_looks_again(away: Away, said: list[str]) -> None:
    """The disk was full for the holder too, which may come first when it is not."""
    store: Any = away
    forge(store)
    watcher = lease_on(store, said.append, patience_s=60)
    away.calls = {"create"}

    def back() -> None:
        forge(store, beat=1)
        away.calls.clear()

    threading.Timer(2 * SHORT.expiry_s, back).start()
    with pytest.raises(LeaseError, match="another run is working on it"), watcher.acquire():
        pytest.fail("a run that beats whenever it can was taken over")


def test_an_outage_that_does_not_end_ends_the_waiting(away: Away, said: list[str]) -> None:
    store: Any = away
    forge(store)
    away.calls = {"write"}
    with pytest.raises(StorageError, match="503"), lease_on(store, said.append, patience_s=0.5).acquire():
        pytest.fail("nothing can be held here")


def test_a_thread_that_ends_by_a_defect_ends_the_run(away: Away, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = away
    lease = lease_on(store, print)
    with lease.acquire():
        monkeypatch.setattr(away, "store", None)  # whatever is called raises AttributeError
        with pytest.raises(RuntimeError, match="the thread that renews the lease ended"):
            check_for(lease, seconds=30)
        monkeypatch.undo()


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_conditions_is_refused(s3: str, said: list[str], header: str) -> None:
    """Some that speak S3 do: they would give one lease to two."""
    from magbatch.storage.s3 import quick_s3_client

    def strip(request: Any, **_: Any) -> None:
        del request.headers[header]

    events = quick_s3_client().meta.events
    events.register("before-sign.s3.PutObject", strip)
    try:
        with pytest.raises(OutputError, match=rf"output\.path: {s3}/out: the store ignores conditions") as refused:
            lease_on(open_store(f"{s3}/out", quick=True), said.append).acquire().__enter__()
        assert refused.value.exit_code == 2
    finally:
        events.unregister("before-sign.s3.PutObject", strip)
    assert list(open_store(s3).list("")) == []
    with lease_on(open_store(f"{s3}/out", quick=True), said.append).acquire():
        assert len(list(open_store(s3).list(""))) == 1


def test_a_disk_that_gives_one_name_twice_is_refused(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network disks and mounted buckets do."""
    monkeypatch.setattr("magbatch.storage.disk._give_name", os.rename)
    with pytest.raises(OutputError, match="the store ignores conditions"):
        lease_on(open_store(str(tmp_path)), said.append).acquire().__enter__()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
