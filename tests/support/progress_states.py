"""Progress of a small job, states of its fleet, and a clock that a test moves."""

from typing import Any

from magbatch.replica.board import Slot, Snapshot, State
from magbatch.report.progress import JobProgress
from magbatch.spec import parse
from magbatch.totals import Totals

SPEC = """
name: small
model: {source: builtin:tiny, engine: fake}
input: {path: /in, columns: {prompt: question}}
output: {path: /out}
replicas: {gpus: 2}
cost: {device_hour: 3.6, currency: EUR}
"""


class Clock:
    """Time that a test moves, by both clocks."""

    def __init__(self) -> None:
        self.now = 5000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1_700_000_000


def job(planned: int = 20_000, before: int = 0, **more: Any) -> JobProgress:
    """Progress of a job of many rows."""
    return JobProgress(parse(SPEC), planned, before, **more)


def tokens(rows: int, each: int, failed: int = 0) -> Totals:
    """Rows of one length."""
    return Totals(
        answered=rows, failed=failed, records=rows, reasoning_tokens=rows * each, squared_tokens=rows * each * each
    )


def fleet(done: Totals, replicas: int = 1, **more: Any) -> Snapshot:
    """State of a fleet whose replicas all serve."""
    slots = [Slot(number, State.SERVING) for number in range(replicas)]
    return Snapshot(done, slots, False, **more)
