"""List of a job's runs: start, end, how each ended, and how many rows it committed."""

import time
from dataclasses import dataclass
from typing import Any

from magbatch.report.record import ProgressRecord, StoredEnd

MOST_RUNS = 20  # runs kept, the newest ones; the report lists them in one table


@dataclass(frozen=True, slots=True)
class PastRun:
    """A run of a job.

    Attributes:
        began: Start of the run (Unix time, s).
        ended: End of the run, or the time of its last record (Unix time, s).
        how: State in which the run ended, in the words of `status`: `complete`, `interrupted`, `killed`.
        rows: Rows that the run committed.
        host: Host of the command.
    """

    began: float
    ended: float
    how: str
    rows: int
    host: str


def runs_of(record: ProgressRecord | None) -> list[PastRun]:
    """Read the earlier runs from the record of the last run, and add the last run. Unreadable runs are left out."""
    if record is None:
        return []
    found = [run for one in record.get("runs") or [] if (run := _read(one)) is not None]
    end: StoredEnd = record.get("end") or {"state": "killed", "at": record["at"]}
    last = _read(
        {
            "began": record.get("started"),
            "ended": end.get("at", record["at"]),
            "how": end.get("state"),
            "rows": max(0, record.get("done", 0) - record.get("before", 0)),
            "host": record.get("host", ""),
        }
    )
    return [*found, *([last] if last is not None else [])][-MOST_RUNS:]


def with_this(past: list[PastRun], began: float, rows: int, host: str) -> list[PastRun]:
    """Return the runs of a job that is complete now: the past runs and this one."""
    return [*past, PastRun(began, time.time(), "complete", rows, host)][-MOST_RUNS:]


def _read(data: Any) -> PastRun | None:
    try:
        return PastRun(
            float(data["began"]), float(data["ended"]), str(data["how"]), int(data["rows"]), str(data["host"])
        )
    except (KeyError, TypeError, ValueError):  # written by another version; no row depends on it
        return None
