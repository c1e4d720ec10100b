"""The run's own record, `_magbatch/progress.json`, written every few seconds during a run.

Other machines read from it how fast the job is and when it will end. The next run reads which resources were used.
No row depends on it: the objects alone say which rows are done.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import cast

from pydantic import TypeAdapter, ValidationError

from magbatch import guard
from magbatch.errors import DefectError, InterruptedJobError, JobError, LeaseError, StorageError, TooManyFailedError
from magbatch.ledger.layout import RECORD
from magbatch.process import process_space, started_at
from magbatch.replica.board import State
from magbatch.report.beat import BeatTiming, repeated
from magbatch.report.history import Point
from magbatch.report.progress import JobProgress
from magbatch.report.record import ProgressRecord, StoredEnd, StoredEta, StoredUsage, last_record
from magbatch.report.runs import PastRun, runs_of
from magbatch.report.usage import JobUsage
from magbatch.spec.secrets import without_secrets
from magbatch.storage import Store

TIMING = BeatTiming(interval_s=5.0, last_write_s=30.0)

_SPENT, _HISTORY = TypeAdapter(JobUsage), TypeAdapter(list[Point])


class Heartbeat:
    """Writes the record during a run.

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
        self._end: StoredEnd | None = None

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Write the record while a block runs. The last record says how the run ended."""

        def failed(error: Exception) -> None:
            self._say(f"progress.json can no longer be written: {type(error).__name__}: {error}; the job continues")

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
            self._store.write(
                RECORD, json.dumps({**record(self._progress, running=running), "end": self._end}).encode()
            )


def record(progress: JobProgress, *, running: bool) -> ProgressRecord:
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
        "eta": None if now.eta is None else cast(StoredEta, now.eta._asdict()),
        "cost": now.cost,
        "currency": progress.currency,
        "spent": cast(StoredUsage, asdict(now.spent)),
        "history": progress.history,
        "versions": progress.versions,
        "before": progress.before,
        "runs": [asdict(run) for run in progress.past],
    }


def end_of(error: BaseException | None) -> StoredEnd:
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


def earlier(store: Store) -> tuple[JobUsage, list[Point]]:
    """Read the resources that earlier runs have used, and the points of the job over time."""
    with suppress(StorageError, KeyError, ValidationError):  # a run must not depend on a record that is for people
        if (found := last_record(store)) is not None:
            return _SPENT.validate_python(found["spent"]), _HISTORY.validate_python(found["history"])
    return JobUsage(), []


def earlier_runs(store: Store) -> list[PastRun]:
    """Read the list of earlier runs."""
    with suppress(StorageError):  # as in `earlier`
        return runs_of(last_record(store))
    return []


def earlier_versions(store: Store) -> dict[str, str]:
    """Read the package versions of the last run, by package; empty if it has written none."""
    with suppress(StorageError):  # as in `earlier`
        found = last_record(store)
        if found is not None and isinstance(numbers := found.get("versions"), dict):
            return {str(name): str(number) for name, number in numbers.items()}
    return {}
