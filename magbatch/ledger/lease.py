"""The lease lets a single command at a time work on an output.

A lease protects the bill, and users from surprises. Correctness does not depend on it: rows that two runs answer are
resolved by the rule in `audit`, and a manifest replaces only the manifest that its writer has read.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from magbatch.errors import LeaseError, OutputError, StorageError
from magbatch.ledger.claim import Claim, say_refused
from magbatch.ledger.holder import LeaseRecord, LeaseTiming, LeaseToken, lease_name, newest_lease
from magbatch.storage import Store
from magbatch.storage.patience import patiently

TIMING = LeaseTiming()


class Lease:
    """A command's lease on an output: taken, renewed in a thread, and given back.

    Args:
        store: The output, as a store that answers quickly or not at all.
        say: Function that shows one line to a person.
        patience_s: Seconds that the storage may refuse before the holder gives up; at least `timing.expiry_s`.
        command: Command line of the holder after `magbatch`, without the output.
        timing: Durations; None for `TIMING`.

    Attributes:
        inherited: Whether the last holder had not given its lease back: its replicas may still commit.
    """

    def __init__(
        self,
        store: Store,
        say: Callable[[str], None],
        patience_s: float = 0.0,
        command: tuple[str, ...] = ("run",),
        timing: LeaseTiming | None = None,
    ) -> None:
        self._timing = timing or TIMING
        self._store, self._say = store, say
        self._patience_s = max(patience_s, self._timing.expiry_s)
        self._record = LeaseRecord.of_this_process(command)
        self._number = 0
        self.inherited = False
        self._successor: str | None = None  # the run that has taken the output over
        self._defect: BaseException | None = None
        self._over = threading.Event()

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Hold the output for the length of a block.

        Raises:
            LeaseError: Another command holds the output.
            OutputError: The output cannot be written, or its store cannot keep two runs apart.
            StorageError: The output's storage is away.
        """
        claim = Claim(self._store, self._record, self._patience_s, self._say, self._timing)
        try:
            self._number = claim.take()
        except StorageError as error:
            if error.lasting or claim.is_mistake(error):
                raise OutputError(f"output.path: {error}") from error
            raise
        self.inherited = claim.inherited
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
                if self._successor is None:
                    self._write(replace(self._record, released=True, finished=finished))

    @property
    def token(self) -> LeaseToken:
        """The lease for replicas, which may outlive a driver that has stopped."""
        return LeaseToken(self._store.root, self._number)

    def check(self) -> None:
        """Check the result of the last heartbeat.

        Raises:
            LeaseError: Another run has taken the output over.
        """
        if self._successor is not None:
            raise LeaseError(f"another run ({self._successor}) has taken over {self._store.root}; this run stops")
        if self._defect is not None:
            raise RuntimeError("the thread that renews the lease ended") from self._defect

    def confirm(self) -> None:
        """Look at the output, then `check`: call this before each step that is reserved for the holder.

        Raises:
            LeaseError: Another run has taken the output over.
            StorageError: The output's storage was away for longer than its patience.
        """
        patiently(self._look, self._patience_s, lambda error: say_refused(self._say, error))
        self.check()

    def _beat(self) -> None:
        try:
            while not self._over.wait(self._timing.beat_s):
                with suppress(StorageError):  # the next heartbeat tries again; expiry_s allows for several
                    self._look()
                    if self._successor is not None:
                        return
                    self._write(self._record)
        except Exception as error:  # noqa: BLE001 - a thread's boundary: `check` raises it in the main thread
            self._defect = error

    def _look(self) -> None:
        found = newest_lease(self._store)
        if found is not None and found[0] > self._number:
            self._successor = LeaseRecord.from_json(found[1]).shown()

    def _write(self, record: LeaseRecord) -> None:
        self._record = replace(record, beat=record.beat + 1, at=time.time())
        self._store.write(lease_name(self._number), self._record.to_json())
