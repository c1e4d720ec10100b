"""One run at a time works on an output.

The lease is the object `_magbatch/lease-<n>.json` with the highest n. It is taken by creating n + 1, which
exactly one of many can do, on a disk and on S3 alike; its holder writes it anew every few seconds. Who comes
second looks for such a sign of life, and takes over when there is none. Nobody compares clocks of two machines.

Silence tells something only while the store takes writes: while it is away, or full, no holder can give a sign. So
who waits for one writes as well, and begins to count again at each refusal.

What the lease protects is the bill, and the user's peace. The answers do not need it: rows of two runs that
overlap are told apart by the ledger's one rule, and a manifest is only ever put in the place of the one that
its writer has seen.
"""

import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from magbatch import guard
from magbatch.counts import shown_time
from magbatch.errors import LeaseError, OutputError, StorageError
from magbatch.process import process_space, started_at
from magbatch.spec.secrets import without_value
from magbatch.storage import Store, open_store
from magbatch.storage.patience import PatientStore, patiently

PREFIX = "_magbatch/lease-"
WATCHERS = "_magbatch/watch-"
BEAT_S = 5.0
# Without a sign of life. A beat is at most four requests of a quick store, each a few times QUICK_TIMEOUT_S.
EXPIRY_S = 60.0
LOOK_S = 1.0
LATEST_S = 1e11  # Unix time of the year 5138: no moment of a run is later


@dataclass(frozen=True, slots=True)
class LeaseToken:
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


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_pid(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_time(value: object) -> bool:
    """Whether a value is a moment that can be shown (Unix time, s)."""
    return type(value) in {int, float} and 0 <= value < LATEST_S  # type: ignore[operator]


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


# What the fields of a holder's record hold, where it has them.
_KINDS: dict[str, Callable[[object], bool]] = {
    "host": _is_text, "place": _is_text, "since": _is_text, "pid": _is_pid, "at": _is_time, "taken_at": _is_time,
    "command": _is_words, "released": _is_flag, "finished": _is_flag,
}  # fmt: skip


def _read(data: bytes) -> dict[str, Any]:
    """A holder's record; of one that is damaged, or only just made, nothing is known but that it is there."""
    unknown = {"host": "unknown", "pid": 0, "place": "", "since": "", "released": False}
    with suppress(ValueError, RecursionError):
        record: Any = json.loads(data)
        known = record.keys() & _KINDS.keys() if isinstance(record, dict) else set[str]()
        if known and all(_KINDS[name](record[name]) for name in known):
            return {**unknown, **record}
    return unknown


def _who(holder: dict[str, Any]) -> str:
    taken = holder.get("taken_at")
    since = f", since {shown_time(taken)}" if isinstance(taken, int | float) else ""
    return f"host {holder['host']}, process {holder['pid']}{since}"


@dataclass(frozen=True, slots=True)
class Holder:
    """The command that has an output, or had it last.

    Attributes:
        command: Its name and options, without the output; `run` with its spec's full path, where that is known.
        host: Where it runs.
        pid: Its process.
        at: When it gave its last sign of life (Unix time, s); None of a version that did not say.
        released: It has ended, and given the output back.
        finished: It did what it was to do.
        is_here: It ran on this machine: whether it is gone is certain.
        alive: It works on the output now, as far as can be known.
    """

    command: tuple[str, ...]
    host: str
    pid: int
    at: float | None
    released: bool
    finished: bool
    is_here: bool
    alive: bool


def holder_of(store: Store) -> Holder | None:
    """Who has an output, or had it last; None where nobody ever had.

    Raises:
        StorageError: The output cannot be read.
    """
    numbers = _numbers(store)
    if not numbers:
        return None
    try:
        record = _read(store.read(_name(max(numbers))))
    except FileNotFoundError:  # another has it since, who will be there at the next look
        return None
    at = record.get("at")
    at = float(at) if isinstance(at, int | float) else None
    is_here = bool(record["place"]) and record["place"] == process_space()
    if is_here:
        alive = bool(record["since"]) and started_at(record["pid"]) == record["since"]
    else:
        alive = at is not None and time.time() - at < EXPIRY_S  # clocks of two machines: near enough to tell a person
    command = record.get("command")
    named = tuple(without_value(str(word)) for word in command) if isinstance(command, list) and command else ("run",)
    released = bool(record["released"])
    return Holder(
        named, str(record["host"]), int(record["pid"]), at, released, bool(record.get("finished", True)), is_here,
        alive and not released,
    )  # fmt: skip


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
        patience_s: Seconds that the output's storage may refuse before the holder gives up; EXPIRY_S at least.
        command: What the holder does, as a command line says it after `magbatch`, without the output.

    Attributes:
        inherited: It was taken from a run that had not given it back: its replicas may still commit.
    """

    def __init__(
        self, store: Store, say: Callable[[str], None], patience_s: float = 0.0, command: tuple[str, ...] = ("run",)
    ) -> None:
        self._store = store
        self._say = say
        self._patience_s = max(patience_s, EXPIRY_S)
        self.inherited = False
        pid = guard.command_pid()
        self._record: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "command": [without_value(word) for word in command],
            "place": process_space(),
            "pid": pid,
            "since": started_at(pid),
            "taken_at": time.time(),
            "at": time.time(),
            "beat": 0,
            "released": False,
        }
        self._number, self._is_new = 0, False
        self._lost: str | None = None
        self._defect: BaseException | None = None
        self._over = threading.Event()

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Hold the output for the length of a block.

        Raises:
            LeaseError: Another run has it.
            OutputError: The output cannot be written, or its store cannot keep two runs apart.
            StorageError: The output's storage is away.
        """
        try:
            self._take()
        except StorageError as error:
            if error.lasting or self._is_mistake(error):
                raise OutputError(f"output.path: {error}") from error
            raise
        beats = threading.Thread(target=self._beat, name="lease", daemon=True)
        beats.start()
        finished = False
        try:
            yield
            finished = True
        finally:
            self._over.set()
            beats.join()
            with suppress(StorageError):
                if self._lost is None:
                    self._record["finished"] = finished
                    self._write(released=True)

    @property
    def token(self) -> LeaseToken:
        """For the replicas, which outlive a driver that stands still."""
        return LeaseToken(self._store.root, self._number)

    def check(self) -> None:
        """Raises LeaseError when another run has taken the output over, as far as the last beat knows."""
        if self._lost is not None:
            raise LeaseError(f"another run ({self._lost}) has taken {self._store.root} over; this one stops")
        if self._defect is not None:
            raise RuntimeError("the thread that renews the lease ended") from self._defect

    def confirm(self) -> None:
        """As `check`, by a look at the output itself: before what only the holder may do.

        Raises:
            StorageError: The output's storage was away for longer than its patience.
        """
        patiently(self._look, self._patience_s, self._say_refused)
        self.check()

    def _say_refused(self, error: StorageError) -> None:
        self._say(f"the output's storage refuses, trying again: {error}")

    def _is_mistake(self, error: StorageError) -> bool:
        """Whether a refusal at the very beginning is a wrong output, which a later one would not be."""
        return error.missing_root or (self._is_new and error.full)

    def _wait_at_first(self, error: StorageError) -> None:
        if self._is_mistake(error):
            raise error
        self._say_refused(error)

    def _take(self) -> None:
        store = PatientStore(self._store, EXPIRY_S, self._wait_at_first)
        refused_since: float | None = None
        while True:
            found = patiently(self._newest, EXPIRY_S, self._wait_at_first)
            self._is_new = found is None
            if found is not None:
                self._wait_for_end(*found)
            self._number = found[0] + 1 if found is not None else 1
            try:
                created = (self._store if self.inherited else store).create(_name(self._number), self._data())
            except StorageError as error:
                refused_since = refused_since or time.monotonic()
                if not self.inherited or not error.passing or time.monotonic() - refused_since > self._patience_s:
                    raise
                time.sleep(LOOK_S)
                continue  # the holder may have been refused as well, and beat as soon as it is not
            if not created:
                continue
            numbers = [self._number, *_numbers(store)]
            if max(numbers) == self._number:
                break
            # This one was free because others have had it, and ended, while the request was under way.
            store.delete(_name(self._number))
        self._check_store(store)
        for number in numbers:
            if number < self._number:
                store.delete(_name(number))

    def _check_store(self, store: Store) -> None:
        """Give the lease back at once if the store would have given it to two."""
        if not store.keeps_conditions(_name(self._number), self._data()):
            store.delete(_name(self._number))
            raise OutputError(
                f"output.path: {self._store.root}: the store ignores conditions of writes (If-None-Match, If-Match), "
                "so that two runs could work on one output; choose a store that keeps them"
            )

    def _wait_for_end(self, number: int, data: bytes) -> None:
        """Come back once the holder is gone; raise where it is alive."""
        holder = _read(data)
        who = _who(holder)
        self.inherited = not holder["released"]
        if not self.inherited:
            return
        busy = LeaseError(
            f"{self._store.root}: another run is working on it ({who}); it goes on by itself, nothing needs to be run "
            f"again: magbatch status {self._store.root}"
        )
        if holder["place"] and holder["place"] == self._record["place"]:
            if holder["since"] and started_at(holder["pid"]) == holder["since"]:
                raise busy
            return
        self._say(f"another run ({who}) had this output; waiting {EXPIRY_S:.0f} s for a sign of life from it")
        proof = f"{WATCHERS}{self._record['id']}.json"
        try:
            if self._gives_a_sign(number, data, proof):
                raise busy
        finally:
            with suppress(StorageError):
                self._store.delete(proof)

    def _gives_a_sign(self, number: int, data: bytes, proof: str) -> bool:
        """Whether a holder is alive: watched for EXPIRY_S during which the store took each write of ours.

        Args:
            number: Of the holder's lease.
            data: The lease as it was.
            proof: Name of an object that is written at each look.
        """
        quiet_since: float | None = None
        refused_since: float | None = None
        while quiet_since is None or time.monotonic() - quiet_since < EXPIRY_S:
            time.sleep(LOOK_S)
            try:
                self._store.write(proof, self._data())
                found = self._newest()
            except StorageError as error:
                refused_since = refused_since or time.monotonic()
                if not error.passing or time.monotonic() - refused_since > self._patience_s:
                    raise
                quiet_since = None
                continue
            if found is None or (found[0] == number and _read(found[1])["released"]):
                return False
            if found != (number, data):
                return True
            refused_since, quiet_since = None, quiet_since or time.monotonic()
        return False

    def _beat(self) -> None:
        try:
            while not self._over.wait(BEAT_S):
                with suppress(StorageError):  # the next beat tries again; expiry allows for several
                    self._look()
                    if self._lost is not None:
                        return
                    self._write(released=False)
        except Exception as error:  # noqa: BLE001 - a thread's boundary: `check` raises it where it ends the run
            self._defect = error

    def _look(self) -> None:
        found = self._newest()
        if found is not None and found[0] > self._number:
            self._lost = _who(_read(found[1]))

    def _write(self, *, released: bool) -> None:
        self._record |= {"beat": self._record["beat"] + 1, "at": time.time(), "released": released}
        self._store.write(_name(self._number), self._data())

    def _data(self) -> bytes:
        return json.dumps(self._record).encode()

    def _newest(self) -> tuple[int, bytes] | None:
        while numbers := _numbers(self._store):
            with suppress(FileNotFoundError):  # a newer one was taken, and this one deleted, since the listing
                return max(numbers), self._store.read(_name(max(numbers)))
        return None
