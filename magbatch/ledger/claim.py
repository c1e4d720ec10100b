"""Taking the lease of an output, after its last holder is gone.

A claim creates the lease object with the next number. Exactly one of many commands can create it, on a disk and on S3
alike. If the last holder has not given its lease back, a claim waits for its heartbeat and takes over if none comes.
Clocks of two machines are never compared.

Silence proves a dead holder only while the store takes writes: there is no heartbeat while the store is away or full.
So a waiting claim writes too, and starts its wait again after each refusal.
"""

import time
from collections.abc import Callable
from contextlib import suppress

from magbatch.errors import LeaseError, OutputError, StorageError
from magbatch.ledger.holder import LeaseRecord, LeaseTiming, lease_name, lease_numbers, newest_lease
from magbatch.ledger.layout import WATCHERS
from magbatch.storage import Store
from magbatch.storage.patience import PatientStore, patiently


class Claim:
    """An attempt to take the lease of an output.

    Args:
        store: The output, as a store that answers quickly or not at all.
        record: Record of the claiming command.
        patience_s: Seconds that the storage may refuse while the claim waits for an earlier holder.
        say: Function that shows one line to a person.
        timing: Interval of heartbeats, and silence after which a holder counts as dead, in seconds.

    Attributes:
        inherited: Whether the last holder had not given its lease back: its replicas may still commit.
    """

    def __init__(
        self, store: Store, record: LeaseRecord, patience_s: float, say: Callable[[str], None], timing: LeaseTiming
    ) -> None:
        self.inherited = False
        self._store = store
        self._data = record.to_json()
        self._watcher = f"{WATCHERS}{record.id}.json"
        self._place = record.place
        self._patience_s, self._say, self._timing = patience_s, say, timing
        self._is_new = False  # the output has never had a lease

    def take(self) -> int:
        """Take the lease.

        Returns:
            Number of the new lease object.

        Raises:
            LeaseError: Another command holds the output.
            OutputError: The store cannot keep two runs apart.
            StorageError: The output's storage is away, or the output cannot be written.
        """
        store = PatientStore(self._store, self._timing.expiry_s, self._wait_at_first)
        refused_since: float | None = None
        while True:
            found = patiently(lambda: newest_lease(self._store), self._timing.expiry_s, self._wait_at_first)
            self._is_new = found is None
            if found is not None:
                self._wait_for_end(*found)
            number = found[0] + 1 if found is not None else 1
            try:
                created = (self._store if self.inherited else store).create(lease_name(number), self._data)
            except StorageError as error:
                refused_since = refused_since or time.monotonic()
                if not self.inherited or not error.passing or time.monotonic() - refused_since > self._patience_s:
                    raise
                time.sleep(self._timing.look_s)
                continue  # the old holder may be refused too, and sends a heartbeat once the store is back
            if not created:
                continue
            numbers = [number, *lease_numbers(store)]
            if max(numbers) == number:
                break
            # The number was free only because other commands took leases and ended while this request was under way.
            store.delete(lease_name(number))
        self._check_store(store, number)
        for old in numbers:
            if old < number:
                store.delete(lease_name(old))
        return number

    def is_mistake(self, error: StorageError) -> bool:
        """Whether a refusal means that the spec names a wrong output, so that waiting is useless.

        A missing bucket always does. A full disk does only for a new output.
        """
        return error.missing_root or (self._is_new and error.full)

    def _wait_at_first(self, error: StorageError) -> None:
        if self.is_mistake(error):
            raise error
        say_refused(self._say, error)

    def _check_store(self, store: Store, number: int) -> None:
        """Give the lease back at once if the store could have given it to two commands."""
        if not store.keeps_conditions(lease_name(number), self._data):
            store.delete(lease_name(number))
            raise OutputError(
                f"output.path: {self._store.root}: the store ignores conditions of writes (If-None-Match, If-Match), "
                "so two runs could work on one output; choose a store that honours them"
            )

    def _wait_for_end(self, number: int, data: bytes) -> None:
        """Return once the last holder is gone; raise if it is alive."""
        holder = LeaseRecord.from_json(data)
        self.inherited = not holder.released
        if not self.inherited:
            return
        busy = LeaseError(
            f"{self._store.root}: another run is working on it ({holder.shown()}). That run continues; start nothing. "
            f"State: magbatch status {self._store.root}"
        )
        if holder.place and holder.place == self._place:
            if holder.runs_here():
                raise busy
            return
        self._say(
            f"output was last held by {holder.shown()}; waiting {self._timing.expiry_s:.0f} s for its heartbeat before "
            "taking over"
        )
        try:
            if self._sees_beat(number, data):
                raise busy
        finally:
            with suppress(StorageError):
                self._store.delete(self._watcher)

    def _sees_beat(self, number: int, data: bytes) -> bool:
        """Watch the last holder until a heartbeat, or until `expiry_s` of silence while the store took our writes.

        Args:
            number: Number of the holder's lease.
            data: Content of the lease at the first look.
        """
        quiet_since: float | None = None
        refused_since: float | None = None
        while quiet_since is None or time.monotonic() - quiet_since < self._timing.expiry_s:
            time.sleep(self._timing.look_s)
            try:
                self._store.write(self._watcher, self._data)
                found = newest_lease(self._store)
            except StorageError as error:
                refused_since = refused_since or time.monotonic()
                if not error.passing or time.monotonic() - refused_since > self._patience_s:
                    raise
                quiet_since = None
                continue
            if found is None or (found[0] == number and LeaseRecord.from_json(found[1]).released):
                return False
            if found != (number, data):
                return True
            refused_since, quiet_since = None, quiet_since or time.monotonic()
        return False


def say_refused(say: Callable[[str], None], error: StorageError) -> None:
    """Show a refusal of the output's storage that is waited out."""
    say(f"the output's storage refuses, trying again: {error}")
