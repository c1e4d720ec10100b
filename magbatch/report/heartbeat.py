"""The run's own account of itself, beside the answers: `_magbatch/progress.json`, written anew every few seconds.

It tells another machine how fast the job goes and when it ends, and the next run what earlier ones have used. No
row's fate hangs on it: what is done is in the objects.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Any, Required

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from magbatch import guard
from magbatch.errors import DefectError, InterruptedJobError, JobError, LeaseError, StorageError, TooManyFailedError
from magbatch.ledger.layout import RECORD
from magbatch.ledger.lease import LATEST_S
from magbatch.process import process_space, started_at
from magbatch.replica.board import State
from magbatch.report.progress import JobProgress, JobUsage, Point
from magbatch.report.runs import PastRun, runs_of
from magbatch.spec.secrets import without_secrets
from magbatch.storage import Store

INTERVAL_S = 5.0
LAST_WRITE_S = 30.0
_SPENT, _HISTORY = TypeAdapter(JobUsage), TypeAdapter(list[Point])
ALIVE_S = 60.0  # a record that is older is that of a run which has died


_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Moment = Annotated[float, Field(ge=0, lt=LATEST_S)]


class _EndSaid(TypedDict, total=False):
    """How a run ended, as its record says it."""

    state: str
    at: _Moment
    error: str | None
    message: str
    exit_code: int


class _EtaSaid(TypedDict):
    """See `Eta`."""

    expected_s: _Amount
    early_s: _Amount
    late_s: _Amount


class _SpentSaid(TypedDict, total=False):
    """What people are told of `JobUsage`."""

    device_s: Required[_Amount]


class _Said(TypedDict, total=False):
    """What a run has said of itself: each field that is there has this type, or none of it is believed."""

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
    eta: _EtaSaid | None
    cost: _Amount | None
    currency: str
    spent: _SpentSaid
    runs: list[Any]
    end: _EndSaid | None


_SAID = TypeAdapter(_Said)


class Heartbeat:
    """Writes the record while a run goes on.

    Args:
        store: The output, as a store that answers quickly or not at all.
        progress: What it tells.
        may_write: Raises LeaseError once another run has the output.
        say: Shows one line to a person.
    """

    def __init__(
        self, store: Store, progress: JobProgress, may_write: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._store, self._progress, self._may_write, self._say = store, progress, may_write, say
        self._over = threading.Event()
        self._end: dict[str, Any] | None = None

    @contextmanager
    def beating(self) -> Iterator[None]:
        """For the length of a run; the last record says that it is over, and how it ended."""
        thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
            self._end = end_of(None)
        except BaseException as error:
            self._end = end_of(error)
            raise
        finally:
            self._over.set()
            thread.join(LAST_WRITE_S)
            if not thread.is_alive():  # else a disk hangs, and would hold up the end
                self._write(running=False)

    def _beat(self) -> None:
        while True:  # at once: whoever asks while the engines start is told so
            try:
                self._write(running=True)
            except Exception as error:  # noqa: BLE001 - a thread's boundary: no row may hang on what is for people
                self._say(f"the run's own record is no longer written: {type(error).__name__}: {error}")
                return
            if self._over.wait(INTERVAL_S):
                return

    def _write(self, *, running: bool) -> None:
        with suppress(StorageError, LeaseError):  # the next beat tries again; another run writes its own
            self._may_write()
            self._store.write(RECORD, json.dumps(record(self._progress, running=running) | {"end": self._end}).encode())


def record(progress: JobProgress, *, running: bool) -> dict[str, Any]:
    """What is written; `magbatch status --json` shows it as `run`, but for the history."""
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
    """How a run ended, as its last record holds it.

    Args:
        error: What ended it; None for a job that is complete.
    """
    if error is None:
        kind, code = "complete", 0
    elif isinstance(error, TooManyFailedError):
        kind, code = "ended early", error.exit_code
    elif isinstance(error, InterruptedJobError | KeyboardInterrupt | SystemExit):
        kind, code = "interrupted", InterruptedJobError.exit_code
    else:
        kind, code = "failed", error.exit_code if isinstance(error, JobError) else DefectError.exit_code
    said = str(error or "")
    if error is not None and not isinstance(error, JobError):
        said = guard.LEFT if kind == "interrupted" else f"{type(error).__name__}: {error}"
    name = None if error is None else type(error).__name__
    return {"state": kind, "at": time.time(), "error": name, "message": without_secrets(said), "exit_code": code}


def last_record(store: Store) -> dict[str, Any] | None:
    """What a run has written last; None where none has, or where it is not to be understood.

    Raises:
        StorageError: It cannot be read.
    """
    with suppress(FileNotFoundError, ValueError, RecursionError):
        found = json.loads(store.read(RECORD))
        if isinstance(found, dict) and found.get("version") == 1 and "at" in found:
            _SAID.validate_python(found, strict=True)
            return found
    return None


def rewrite(store: Store, **changes: Any) -> None:
    """Change what a run that is over has written last; nothing where no run has.

    Raises:
        StorageError: It cannot be read or written.
    """
    if (found := last_record(store)) is not None:
        store.write(RECORD, json.dumps(found | changes).encode())


def earlier(store: Store) -> tuple[JobUsage, list[Point]]:
    """What runs before this one have used, and the job over time."""
    with suppress(StorageError, KeyError, ValidationError):  # no run may hang on what was only for people
        found = last_record(store) or {}
        return _SPENT.validate_python(found["spent"]), _HISTORY.validate_python(found["history"])
    return JobUsage(), []


def earlier_runs(store: Store) -> list[PastRun]:
    """The runs before this one, as the record of the last of them tells."""
    with suppress(StorageError):  # no run may hang on what was only for people
        return runs_of(last_record(store) or {})
    return []


def earlier_versions(store: Store) -> dict[str, str]:
    """Package to version, of the last run; empty where none has written them."""
    with suppress(StorageError):
        found = (last_record(store) or {}).get("versions")
        if isinstance(found, dict):
            return {str(name): str(number) for name, number in found.items()}
    return {}
