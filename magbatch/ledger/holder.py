"""The lease object of an output, and the command that it names as its holder.

The lease is the object `_magbatch/lease-<n>.json` with the highest n. Its content describes the holder, which writes
it again every few seconds: a heartbeat.
"""

import json
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from magbatch import guard
from magbatch.counts import shown_time
from magbatch.ledger.layout import LEASES
from magbatch.process import process_space, started_at
from magbatch.spec.secrets import without_value
from magbatch.storage import Store, open_store

EXPIRY_S = 60.0  # a heartbeat takes at most four requests of a quick store, each a few times QUICK_TIMEOUT_S
LATEST_S = 1e11  # Unix time of the year 5138; a later time in a record is damage


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """Durations of a lease.

    Attributes:
        beat_s: Seconds between two heartbeats of the holder.
        expiry_s: Seconds without a heartbeat after which a holder on another machine counts as dead.
        look_s: Seconds between two looks of a command that waits for a heartbeat.
    """

    beat_s: float = 5.0
    expiry_s: float = EXPIRY_S
    look_s: float = 1.0


@dataclass(frozen=True, slots=True)
class LeaseToken:
    """A run's lease as its replicas know it.

    Attributes:
        root: Local directory or s3:// prefix of the output.
        number: Number of the lease object.
    """

    root: str
    number: int

    def is_lost(self) -> bool:
        """Whether another run has taken the output over.

        Raises:
            StorageError: The output cannot be listed.
        """
        return max(lease_numbers(open_store(self.root, quick=True)), default=self.number) > self.number


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_pid(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_time(value: object) -> bool:
    """Whether a value is a Unix time (seconds) that can be shown as a date."""
    return type(value) in {int, float} and 0 <= value < LATEST_S  # type: ignore[operator]


def _is_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


# Fields of a stored record that are read, each with its check. Older versions did not write all of them.
_CHECKS: dict[str, Callable[[object], bool]] = {
    "host": _is_text, "place": _is_text, "since": _is_text, "pid": _is_pid, "at": _is_time, "taken_at": _is_time,
    "command": _is_words, "released": _is_flag, "finished": _is_flag,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Content of a lease object.

    Attributes:
        host: Name of the holder's machine.
        pid: Process id of the holder.
        place: Identity of the machine and its boot, within which `pid` is unique. Empty if unknown.
        since: Start of the process, in ticks since the boot; tells two processes with one id apart.
        command: Command line after `magbatch`, without the output.
        taken_at: Time at which the lease was taken (Unix time, seconds); None in older versions.
        at: Time of the last heartbeat (Unix time, seconds); None in older versions.
        beat: Number of heartbeats so far.
        released: Whether the holder has ended and given the lease back.
        finished: Whether a released holder had done its work; None before the release.
        id: Random id of the holder, hex.
    """

    host: str = "unknown"
    pid: int = 0
    place: str = ""
    since: str = ""
    command: tuple[str, ...] = ("run",)
    taken_at: float | None = None
    at: float | None = None
    beat: int = 0
    released: bool = False
    finished: bool | None = None
    id: str = ""

    @classmethod
    def of_this_process(cls, command: tuple[str, ...]) -> Self:
        """The record of the command that runs here."""
        pid, now = guard.command_pid(), time.time()
        return cls(
            host=socket.gethostname(), pid=pid, place=process_space(), since=started_at(pid),
            command=tuple(without_value(word) for word in command), taken_at=now, at=now, id=uuid.uuid4().hex,
        )  # fmt: skip

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse a lease object; a damaged or unfinished one gives a record of an unknown holder."""
        with suppress(ValueError, RecursionError):
            record: Any = json.loads(data)
            known = record.keys() & _CHECKS.keys() if isinstance(record, dict) else set[str]()
            if known and all(_CHECKS[name](record[name]) for name in known):
                values = {name: record[name] for name in known}
                command = values.pop("command", None)
                return cls(**values, command=tuple(command) if command else ("run",))
        return cls()

    def to_json(self) -> bytes:
        """The record as it is stored, without unknown values."""
        record = {
            "id": self.id, "host": self.host, "command": list(self.command), "place": self.place, "pid": self.pid,
            "since": self.since, "taken_at": self.taken_at, "at": self.at, "beat": self.beat,
            "released": self.released, "finished": self.finished,
        }  # fmt: skip
        return json.dumps({name: value for name, value in record.items() if value is not None}).encode()

    def shown(self) -> str:
        """The holder, for a message."""
        since = f", since {shown_time(self.taken_at)}" if self.taken_at is not None else ""
        return f"host {self.host}, process {self.pid}{since}"

    def is_here(self) -> bool:
        """Whether the holder ran on this machine, so that its process can be looked up."""
        return bool(self.place) and self.place == process_space()

    def runs_here(self) -> bool:
        """Whether the holder's process runs on this machine now."""
        return self.is_here() and bool(self.since) and started_at(self.pid) == self.since


@dataclass(frozen=True, slots=True)
class Holder:
    """The command that holds an output, or held it last.

    Attributes:
        command: Name and options of the command, without the output; `run` with the full path of its spec, if known.
        host: Name of its machine.
        pid: Process id.
        at: Time of its last heartbeat (Unix time, seconds); None if an older version wrote the record.
        released: Whether it has ended and given the output back.
        finished: Whether it did its work.
        is_here: Whether it ran on this machine, so that `alive` is certain.
        alive: Whether it works on the output now. For another machine this compares two clocks, which is good enough
            for a message.
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
    """The command that holds an output, or held it last; None if no command ever held it.

    Raises:
        StorageError: The output cannot be read.
    """
    numbers = lease_numbers(store)
    if not numbers:
        return None
    try:
        record = LeaseRecord.from_json(store.read(lease_name(max(numbers))))
    except FileNotFoundError:  # another command has just taken the output; the caller's next look finds it
        return None
    is_here = record.is_here()
    alive = record.runs_here() if is_here else record.at is not None and time.time() - record.at < EXPIRY_S
    return Holder(
        command=tuple(without_value(word) for word in record.command),
        host=record.host,
        pid=record.pid,
        at=record.at,
        released=record.released,
        finished=record.finished is not False,
        is_here=is_here,
        alive=alive and not record.released,
    )


def lease_name(number: int) -> str:
    """Name of a lease object."""
    return f"{LEASES}{number:08d}.json"


def lease_numbers(store: Store) -> list[int]:
    """Numbers of all lease objects."""
    names = [item.name.removeprefix(LEASES).removesuffix(".json") for item in store.list(LEASES)]
    return [int(name) for name in names if name.isdigit()]


def newest_lease(store: Store) -> tuple[int, bytes] | None:
    """Number and content of the lease object with the highest number; None if there is none."""
    while numbers := lease_numbers(store):
        with suppress(FileNotFoundError):  # deleted since the listing, because a newer lease was taken
            return max(numbers), store.read(lease_name(max(numbers)))
    return None
