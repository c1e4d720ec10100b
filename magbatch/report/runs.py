"""The runs of a job, one after the other: when each began and ended, how, and what it did."""

import time
from dataclasses import dataclass
from typing import Any

MOST_RUNS = 20  # that are kept: the last ones


@dataclass(frozen=True, slots=True)
class PastRun:
    """One run of a job.

    Attributes:
        began: Start of it (Unix time, s).
        ended: End of it, or its last sign of life (Unix time, s).
        how: How it ended, as `status` says it: `complete`, `interrupted`, `killed`.
        rows: Rows that it committed.
        host: Where its command ran.
    """

    began: float
    ended: float
    how: str
    rows: int
    host: str


def runs_of(record: dict[str, Any]) -> list[PastRun]:
    """The runs that the record of the last one tells of, that one included; what it does not tell is left out."""
    found = [run for one in record.get("runs") or [] if (run := _read(one)) is not None]
    end = record.get("end") or {"state": "killed", "at": record.get("at")}
    last = _read(
        {
            "began": record.get("started"),
            "ended": end.get("at", record.get("at")),
            "how": end.get("state"),
            "rows": max(0, record.get("done", 0) - record.get("before", 0)),
            "host": record.get("host", ""),
        }
    )
    return [*found, *([last] if last is not None else [])][-MOST_RUNS:]


def with_this(past: list[PastRun], began: float, rows: int, host: str) -> list[PastRun]:
    """The runs of a job that this one completes."""
    return [*past, PastRun(began, time.time(), "complete", rows, host)][-MOST_RUNS:]


def _read(data: Any) -> PastRun | None:
    try:
        return PastRun(
            float(data["began"]), float(data["ended"]), str(data["how"]), int(data["rows"]), str(data["host"])
        )
    except (KeyError, TypeError, ValueError):  # of another version: nobody's rows hang on it
        return None
