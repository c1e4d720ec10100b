"""One run at a time works on an output.

The lease is the object `_magbatch/lease-<n>.json` with the highest n. It is taken by creating n + 1, which
exactly one of many can do, on a disk and on S3 alike; its holder writes it anew every few seconds. Who comes
second looks for such a sign of life, and takes over when there is none. Nobody compares clocks of two machines.

What the lease protects is the bill, and the user's peace. The answers do not need it: rows of two runs that
overlap are told apart by the ledger's one rule, and a manifest is only ever put in the place of the one that
its writer has seen.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magbatch.errors import LeaseError, StorageError
from magbatch.storage import Store, open_store
from magbatch.storage.patience import PatientStore, patiently

PREFIX = "_magbatch/lease-"
BEAT_S = 5.0
# Without a sign of life. A beat is at most four requests of a quick store, each a few times QUICK_TIMEOUT_S.
EXPIRY_S = 60.0
LOOK_S = 1.0


def _place() -> str:
    """What a process id is unique in: this boot of this machine, and its process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"
    with suppress(OSError):
        return f"{boot.read_text().strip()}/{os.stat(namespace).st_ino}"
    return ""


def _started(pid: int) -> str:
    """When a process of this place began: no other with this id has the same, whatever the clocks do."""
    try:
        # Ticks since the boot, the 20th field after the name (proc(5)), which may hold blanks and brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class Hold:
    """What a replica knows of its run's lease.

    Attributes:
        root: The output.
        number: The lease's.
    """

    root: str
    number: int

    def is_lost(self) -> bool:
        """Whether another run has taken the output over.

        Raises:
            StorageError: The output cannot be listed.
        """
        return max(_numbers(open_store(self.root, quick=True)), default=self.number) > self.number


def _read(data: bytes) -> dict[str, Any]:
    """A holder's record; of one that is damaged, or only just made, nothing is known but that it is there."""
    unknown = {"host": "unknown", "pid": 0, "place": "", "since": "", "released": False}
    with suppress(ValueError):
        record = json.loads(data)
        if isinstance(record, dict):
            return unknown | record
    return unknown


def _who(holder: dict[str, Any]) -> str:
    return f"host {holder['host']}, process {holder['pid']}"


def _name(number: int) -> str:
    return f"{PREFIX}{number:08d}.json"


def _numbers(store: Store) -> list[int]:
    names = [item.name.removeprefix(PREFIX).removesuffix(".json") for item in store.list(PREFIX)]
    return [int(name) for name in names if name.isdigit()]


class Lease:
    """A run's hold on an output.

    Args:
        store: The output, as a store that answers quickly or not at all.
        say: Shows one line to a person.

    Attributes:
        inherited: It was taken from a run that had not given it back: its replicas may still commit.
    """

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        self._store = store
        self._say = say
        self.inherited = False
        pid = os.getpid()
        self._record: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "place": _place(),
            "pid": pid,
            "since": _started(pid),
            "beat": 0,
            "released": False,
        }
        self._number = 0
        self._lost: str | None = None
        self._over = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the output for the length of a block.

        Raises:
            LeaseError: Another run has it.
            StorageError: The output cannot be written.
        """
        self._take()
        beats = threading.Thread(target=self._beat, name="lease", daemon=True)
        beats.start()
        try:
            yield
        finally:
            self._over.set()
            beats.join()
            with suppress(StorageError):
                if self._lost is None:
                    self._write(released=True)

    @property
    def hold(self) -> Hold:
        """For the replicas, which outlive a driver that stands still."""
        return Hold(self._store.root, self._number)

    def check(self) -> None:
        """Raises LeaseError when another run has taken the output over, as far as the last beat knows."""
        if self._lost is not None:
            raise LeaseError(f"another run ({self._lost}) has taken {self._store.root} over; this one stops")

    def confirm(self) -> None:
        """As `check`, by a look at the output itself: before what only the holder may do."""
        patiently(self._look, EXPIRY_S)
        self.check()

    def _take(self) -> None:
        store = PatientStore(self._store, EXPIRY_S)
        while True:
            found = patiently(self._newest, EXPIRY_S)
            if found is not None:
                self._wait_for_end(*found)
            self._number = found[0] + 1 if found is not None else 1
            if not store.create(_name(self._number), self._data()):
                continue
            numbers = [self._number, *_numbers(store)]
            if max(numbers) == self._number:
                break
            # This one was free because others have had it, and ended, while the request was under way.
            store.delete(_name(self._number))
        for number in numbers:
            if number < self._number:
                store.delete(_name(number))

    def _wait_for_end(self, number: int, data: bytes) -> None:
        """Come back once the holder is gone; raise where it is alive."""
        holder = _read(data)
        who = _who(holder)
        self.inherited = not holder["released"]
        if not self.inherited:
            return
        busy = LeaseError(f"{self._store.root}: another run is working on it ({who}); wait for it, or stop it")
        if holder["place"] and holder["place"] == self._record["place"]:
            if holder["since"] and _started(holder["pid"]) == holder["since"]:
                raise busy
            return
        self._say(f"another run ({who}) had this output; waiting {EXPIRY_S:.0f} s for a sign of life from it")
        watched_since: float | None = None
        while watched_since is None or time.monotonic() - watched_since < EXPIRY_S:
            time.sleep(LOOK_S)
            try:
                found = self._newest()
            except StorageError as error:
                if not error.passing:
                    raise
                watched_since = None  # while the store was away, nobody could give a sign of life
                continue
            if found is None or (found[0] == number and _read(found[1])["released"]):
                return
            if found != (number, data):
                raise busy
            watched_since = watched_since or time.monotonic()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(StorageError):  # the next beat tries again; expiry allows for several
                self._look()
                if self._lost is not None:
                    return
                self._write(released=False)

    def _look(self) -> None:
        found = self._newest()
        if found is not None and found[0] > self._number:
            self._lost = _who(_read(found[1]))

    def _write(self, *, released: bool) -> None:
        self._record |= {"beat": self._record["beat"] + 1, "released": released}
        self._store.write(_name(self._number), self._data())

    def _data(self) -> bytes:
        return json.dumps(self._record).encode()

    def _newest(self) -> tuple[int, bytes] | None:
        while numbers := _numbers(self._store):
            with suppress(FileNotFoundError):  # a newer one was taken, and this one deleted, since the listing
                return max(numbers), self._store.read(_name(max(numbers)))
        return None
