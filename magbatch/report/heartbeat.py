"""The run's own record, `_magbatch/progress.json`, written every few seconds while a run goes on.

It tells other machines how fast the job goes and when it ends, and tells the next run which resources were used before.
No row depends on it: the objects alone say which rows are done.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Required

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from magbatch import guard
from magbatch.errors import DefectError, InterruptedJobError, JobError, LeaseError, StorageError, TooManyFailedError
from magbatch.ledger.holder import LATEST_S
from magbatch.ledger.layout import RECORD
from magbatch.process import process_space, started_at
from magbatch.replica.board import State
from magbatch.report.beat import BeatTiming, repeated
from magbatch.report.history import Point
from magbatch.report.progress import JobProgress
from magbatch.report.runs import PastRun, runs_of
from magbatch.report.usage import JobUsage
from magbatch.spec.secrets import without_secrets
from magbatch.storage import Store

TIMING = BeatTiming(interval_s=5.0, last_write_s=30.0)
ALIVE_S = 60.0  # age of a record beyond which its run counts as dead: twelve writes have failed by then

_SPENT, _HISTORY = TypeAdapter(JobUsage), TypeAdapter(list[Point])
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Moment = Annotated[float, Field(ge=0, lt=LATEST_S)]


class _StoredEnd(TypedDict, total=False):
    """End of a run, as a record holds it."""

    state: str
    at: _Moment
    error: str | None
    message: str
    exit_code: int


class _StoredEta(TypedDict):
    """An `Eta`, as a record holds it."""

    expected_s: _Amount
    early_s: _Amount
    late_s: _Amount


class _StoredUsage(TypedDict, total=False):
    """The part of a `JobUsage` that is shown to people."""

    device_s: Required[_Amount]


class _StoredRecord(TypedDict, total=False):
    """A record of any version. A record with a field of another type is not used at all."""

    at: Required[_Moment]
    running: bool
    host: str
    pid: Annotated[int, Field(ge=0, lt=2**31)]
    place: str
    since: str
    started: _Moment
    planned: _Count
    done: _Count
    before: _Count
    failed: _Count
    truncated: _Count
    rows_per_s: _Amount
    tokens_per_s: _Amount
    starting: bool
    replicas: dict[str, _Count]
    eta: _StoredEta | None
    cost: _Amount | None
    currency: str
    spent: _StoredUsage
    runs: list[Any]
    end: _StoredEnd | None


_RECORD = TypeAdapter(_StoredRecord)


class Heartbeat:
    """Writes the record while a run goes on.

    Args:
        store: Output of the job, as a store that answers quickly or not at all.
        progress: Progress that is written.
        may_write: Function that raises LeaseError once another run has the output.
        say: Function that shows one line to a person.
        timing: Durations of the writes.
    """

    def __init__(
        self,
        store: Store,
        progress: JobProgress,
        may_write: Callable[[], None],
        say: Callable[[str], None],
        timing: BeatTiming = TIMING,
    ) -> None:
        self._store, self._progress, self._may_write, self._say = store, progress, may_write, say
        self._timing = timing
        self._end: dict[str, Any] | None = None

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Write the record for the length of a run. The last record says how the run ended."""

        def failed(error: Exception) -> None:
            self._say(f"progress.json can no longer be written: {type(error).__name__}: {error}; the job goes on")

        write, write_last = partial(self._write, running=True), partial(self._write, running=False)
        with repeated("heartbeat", write, write_last, failed, self._timing):
            try:
                yield
                self._end = end_of(None)
            except BaseException as error:
                self._end = end_of(error)
                raise

    def _write(self, *, running: bool) -> None:
        with suppress(StorageError, LeaseError):  # the next write tries again; another run writes its own record
            self._may_write()
            self._store.write(RECORD, json.dumps(record(self._progress, running=running) | {"end": self._end}).encode())


def record(progress: JobProgress, *, running: bool) -> dict[str, Any]:
    """Return the record without its `end`. `magbatch status --json` shows it as `run`, without the history."""
    now = progress.snapshot()
    fleet, seen = now.fleet, now.seen
    return {
        "version": 1,
        "running": running,
        "at": time.time(),
        "host": socket.gethostname(),
        "pid": guard.command_pid(),
        "place": process_space(),
        "since": started_at(guard.command_pid()),
        "started": now.started,
        "planned": now.planned,
        "done": now.done,
        "failed": seen.failed,
        "truncated": now.truncated,
        "rows_per_s": now.rows_per_s,
        "tokens_per_s": now.tokens_per_s,
        "starting": fleet.starting,
        "replicas": {str(state): fleet.count(state) for state in State},
        "eta": now.eta._asdict() if now.eta is not None else None,
        "cost": now.cost,
        "currency": progress.currency,
        "spent": asdict(now.spent),
        "history": progress.history,
        "versions": progress.versions,
        "before": progress.before,
        "runs": [asdict(run) for run in progress.past],
    }


def end_of(error: BaseException | None) -> dict[str, Any]:
    """Return the end of a run as its last record holds it.

    Args:
        error: Exception that ended the run; None if the job is complete.
    """
    if error is None:
        kind, code = "complete", 0
    elif isinstance(error, TooManyFailedError):
        kind, code = "ended early", error.exit_code
    elif isinstance(error, InterruptedJobError | KeyboardInterrupt | SystemExit):
        kind, code = "interrupted", InterruptedJobError.exit_code
    else:
        kind, code = "failed", error.exit_code if isinstance(error, JobError) else DefectError.exit_code
    message = str(error or "")
    if error is not None and not isinstance(error, JobError):
        message = guard.LEFT if kind == "interrupted" else f"{type(error).__name__}: {error}"
    name = None if error is None else type(error).__name__
    return {"state": kind, "at": time.time(), "error": name, "message": without_secrets(message), "exit_code": code}


def last_record(store: Store) -> dict[str, Any] | None:
    """Read the last record; None if no run has written a record, or it cannot be parsed.

    Raises:
        StorageError: Storage refuses the read.
    """
    with suppress(FileNotFoundError, ValueError, RecursionError):
        found = json.loads(store.read(RECORD))
        if isinstance(found, dict) and found.get("version") == 1 and "at" in found:
            _RECORD.validate_python(found, strict=True)
            return found
    return None


def rewrite(store: Store, **changes: Any) -> None:
    """Change fields of the last record of a run that has ended. Nothing happens if there is no record.

    Raises:
        StorageError: Storage refuses the read or the write.
    """
    if (found := last_record(store)) is not None:
        store.write(RECORD, json.dumps(found | changes).encode())


def earlier(store: Store) -> tuple[JobUsage, list[Point]]:
    """Read the resources that earlier runs have used, and the points of the job over time."""
    with suppress(StorageError, KeyError, ValidationError):  # a run must not depend on a record that is for people
        found = last_record(store) or {}
        return _SPENT.validate_python(found["spent"]), _HISTORY.validate_python(found["history"])
    return JobUsage(), []


def earlier_runs(store: Store) -> list[PastRun]:
    """Read the list of earlier runs."""
    with suppress(StorageError):  # as in `earlier`
        return runs_of(last_record(store) or {})
    return []


def earlier_versions(store: Store) -> dict[str, str]:
    """Read the package versions of the last run, by package; empty if it has written none."""
    with suppress(StorageError):  # as in `earlier`
        found = (last_record(store) or {}).get("versions")
        if isinstance(found, dict):
            return {str(name): str(number) for name, number in found.items()}
    return {}
