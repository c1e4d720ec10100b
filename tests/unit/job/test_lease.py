"""One run at a time works on an output, on a disk and in object storage alike."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from magbatch.errors import LeaseError, StorageError
from magbatch.job import lease as lease_module
from magbatch.job.lease import PREFIX, Lease
from magbatch.storage import Store, open_store


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "BEAT_S", 0.1)
    monkeypatch.setattr(lease_module, "EXPIRY_S", 1.5)
    monkeypatch.setattr(lease_module, "LOOK_S", 0.1)


def names(store: Store) -> list[str]:
    return [item.name for item in store.list(PREFIX)]


def forge(store: Store, number: int = 1, **fields: object) -> None:
    """A lease as another machine would have written it."""
    record = {"id": "x", "host": "elsewhere", "place": "other", "pid": 7, "since": 1.0, "beat": 0, "released": False}
    store.write(f"{PREFIX}{number:08d}.json", json.dumps(record | fields).encode())


@pytest.fixture
def said() -> list[str]:
    return []


def test_a_run_of_this_machine_that_is_alive_is_refused_at_once(store: Store, said: list[str]) -> None:
    with Lease(store, said.append).held():
        with pytest.raises(LeaseError) as refused, Lease(store, said.append).held():
            pytest.fail("two runs hold one output")
        assert f"process {os.getpid()}" in str(refused.value)
        assert refused.value.exit_code == 3
    assert said == []
    with Lease(store, said.append).held():
        assert len(names(store)) == 1
    assert said == []


def test_a_live_run_stays_one_when_the_clock_is_set(
    store: Store, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """psutil's time of creation moves with the clock: what is compared must not."""
    with Lease(store, said.append).held():
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 1.0)
        with pytest.raises(LeaseError), Lease(store, said.append).held():
            pytest.fail("two runs hold one output")


def test_a_run_of_this_machine_that_was_killed_is_no_hindrance(store: Store, said: list[str], root: str) -> None:
    code = (
        "import os, sys; from magbatch.job.lease import Lease; from magbatch.storage import open_store\n"
        "with Lease(open_store(sys.argv[1]), print).held(): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, root], check=False)
    assert killed.returncode == -9
    assert len(names(store)) == 1
    with Lease(store, said.append).held():
        assert said == []


def test_a_run_elsewhere_that_gives_signs_of_life_is_refused(store: Store, said: list[str]) -> None:
    forge(store)
    over = threading.Event()

    def beat() -> None:
        for number in range(100):
            if over.wait(0.3):
                return
            forge(store, beat=number + 1)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(LeaseError, match="host elsewhere, process 7"), Lease(store, said.append).held():
            pytest.fail("two runs hold one output")
    finally:
        over.set()
        beating.join()
    assert ["elsewhere" in line for line in said] == [True]


def test_a_run_elsewhere_without_a_sign_of_life_is_taken_over(store: Store, said: list[str]) -> None:
    forge(store, number=4)
    began = time.monotonic()
    with Lease(store, said.append).held():
        assert time.monotonic() - began >= 1.5
        assert names(store) == [f"{PREFIX}00000005.json"]


def test_a_run_elsewhere_that_has_ended_is_no_hindrance(store: Store, said: list[str]) -> None:
    forge(store, released=True)
    with Lease(store, said.append).held():
        assert said == []


def test_a_holder_that_is_taken_over_notices(store: Store, said: list[str]) -> None:
    lease = Lease(store, said.append)
    with lease.held():
        lease.check()
        lease.confirm()
        forge(store, number=9)
        with pytest.raises(LeaseError, match="host elsewhere, process 7"):
            lease.confirm()
        with pytest.raises(LeaseError):
            lease.check()
    assert json.loads(store.read(f"{PREFIX}00000009.json"))["released"] is False, "it is the other's to release"


def test_a_holder_notices_by_itself(store: Store, said: list[str]) -> None:
    lease = Lease(store, said.append)
    with lease.held():
        forge(store, number=9)
        with pytest.raises(LeaseError):
            check_for(lease, seconds=30)


def check_for(lease: Lease, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        lease.check()
        time.sleep(0.05)


def test_one_of_many_that_come_at_once_gets_it(store: Store) -> None:
    forge(store, number=3, released=True)
    start, done = threading.Barrier(8), threading.Barrier(8)
    held: list[int] = []
    refused: list[LeaseError] = []

    def come(number: int) -> None:
        start.wait()
        try:
            with Lease(store, lambda line: None).held():
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
    with pytest.raises(StorageError, match="file"), Lease(open_store(str(tmp_path / "file")), print).held():
        pytest.fail("nothing can be held here")
