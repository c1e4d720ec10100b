"""Progress of a job during one run: rows done, speed, expected end, and the resources used by all its runs.

Only committed rows are counted, so a number that was shown stays true after a crash.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from magbatch.replica.board import Load, Slot, Snapshot
from magbatch.report.history import History, Point
from magbatch.report.runs import PastRun
from magbatch.report.usage import JobUsage
from magbatch.rows import ReasoningStatus
from magbatch.spec import JobSpec
from magbatch.totals import Totals
from magbatch.versions import versions

RATE_WINDOW_S = 60.0  # span over which the speed is measured
LEAST_RECORDS = 5  # samples that must be seen before their lengths say anything about the remaining rows
Z_90 = 1.645  # standard deviations on either side of the mean that hold 90% of a normal distribution


class Eta(NamedTuple):
    """Seconds until a job is complete: the expected value, and the ends of a 90% interval."""

    expected_s: float
    early_s: float
    late_s: float


def eta(rows_left: int, seen: Totals, tokens_per_s: float, rows_per_s: float) -> Eta | None:
    r"""Estimate when the remaining rows are done at the current speed; None while nothing moves.

    Lengths of the remaining samples are assumed to scatter like those seen so far. With N samples seen and R left, the
    tokens left have the mean `R * mean` and the variance `variance * (R + R**2 / N)`. The first term is the scatter of
    a sum of R draws; the second is R times the standard error of a mean of N. The longest rows are finished last, so
    early in a job the late end is the likelier one.

    Example: 100 rows of 50 tokens each are seen and 1,000 are left. At 500 tokens/s all three values are 100 s, because
    equal lengths leave no scatter.

    Args:
        rows_left: Rows that are not done.
        seen: Totals of the rows that are done.
        tokens_per_s: Generated tokens per second.
        rows_per_s: Rows per second; used if no token was generated.
    """
    if rows_left == 0:
        return Eta(0.0, 0.0, 0.0)
    records = seen.records + seen.failed_generated
    if 0 < records < LEAST_RECORDS:
        return None
    if not seen.generated_tokens or tokens_per_s <= 0:
        return Eta(*[rows_left / rows_per_s] * 3) if rows_per_s > 0 else None
    per_row = records / seen.rows
    mean = seen.generated_tokens / records
    variance = max(0.0, seen.squared_tokens / records - mean**2)
    records_left = rows_left * per_row
    spread = Z_90 * math.sqrt(variance * (records_left + records_left**2 / records))
    tokens = records_left * mean
    return Eta(tokens / tokens_per_s, max(0.0, tokens - spread) / tokens_per_s, (tokens + spread) / tokens_per_s)


@dataclass(frozen=True, slots=True)
class ProgressSnapshot:
    """State of a job at one moment.

    Attributes:
        planned: Input rows of the job.
        done: Rows that are done.
        totals: Sums over all committed rows; None while the footers of earlier objects are still being read.
        seen: Sums over the committed rows that are known so far.
        fleet: Snapshot of the fleet.
        slots: Slots of the fleet; after its end, slots of the last fleet.
        rows_per_s: Rows per second in the last minute.
        tokens_per_s: Generated tokens per second in the last minute.
        eta: Expected end; None if it is not known.
        spent: Resources used by all runs of the job.
        cost: Cost of the devices, in the spec's currency; None without a price.
        started: Start of this run (Unix time, s).
        progressed: Time of the last commit; before it, the start of this run (Unix time, s).
        complete: Whether the manifest is written.
    """

    planned: int
    done: int
    totals: Totals | None
    seen: Totals
    fleet: Snapshot
    slots: list[Slot]
    rows_per_s: float
    tokens_per_s: float
    eta: Eta | None
    spent: JobUsage
    cost: float | None
    started: float
    progressed: float
    complete: bool

    @property
    def truncated(self) -> int:
        """Samples whose reasoning was truncated."""
        return self.seen.by_status.get(ReasoningStatus.TRUNCATED, 0)


class _RateWindow:
    """Speed over the last `RATE_WINDOW_S` seconds."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int, int]] = deque()  # monotonic seconds, rows, tokens

    def add(self, now: float, rows: int, tokens: int) -> None:
        """Add the counts of a moment (monotonic clock, s)."""
        self._counts.append((now, rows, tokens))
        while now - self._counts[0][0] > RATE_WINDOW_S:
            self._counts.popleft()

    def rates(self) -> tuple[float, float]:
        """Return rows and tokens per second; zeros if fewer than two moments are known."""
        if len(self._counts) < 2:
            return 0.0, 0.0
        (then, rows_then, tokens_then), (now, rows, tokens) = self._counts[0], self._counts[-1]
        seconds = max(now - then, 1e-9)
        return (rows - rows_then) / seconds, (tokens - tokens_then) / seconds

    def clear(self) -> None:
        """Forget all counts."""
        self._counts.clear()


class _Fleets:
    """The current fleet of a run, and the sums over the fleets before it.

    Args:
        devices: Devices that each replica holds.
        spent: Resources that earlier runs have used.

    Attributes:
        fleet: Snapshot of the current fleet.
        progressed: Time of the last commit; before it, the start of the run (Unix time, s).
        observed: Time of the last snapshot (monotonic clock, s); None while there is no fleet.
        window: Speed in the last minute.
    """

    def __init__(self, devices: int, spent: JobUsage) -> None:
        self._devices, self._spent = devices, spent
        self.fleet = Snapshot()
        self._last_slots: list[Slot] = []
        self._ended = Totals()  # committed by fleets that have ended
        self.progressed = time.time()
        self.observed: float | None = None
        self.window = _RateWindow()

    @property
    def done(self) -> Totals:
        """Sums over the rows that the run has committed."""
        return self._ended.plus(self.fleet.done)

    @property
    def spent(self) -> JobUsage:
        """Resources used by all runs of the job."""
        return self._spent.plus(JobUsage.of(self.fleet, self._devices))

    @property
    def slots(self) -> list[Slot]:
        """Slots of the current fleet; after its end, of the last fleet."""
        return self.fleet.slots or self._last_slots

    def observe(self, fleet: Snapshot) -> None:
        """Observe the current state of the fleet."""
        self.observed = time.monotonic()
        if fleet.done.rows > self.fleet.done.rows:
            self.progressed = time.time()
        self.fleet = fleet
        if not fleet.starting:
            done = self.done
            self.window.add(self.observed, done.rows, done.generated_tokens)

    def end(self) -> None:
        """Add the fleet, which has ended, to the sums."""
        self.observed = None
        self._spent, self._ended = self.spent, self.done
        self._last_slots = self.fleet.slots
        for slot in self._last_slots:
            slot.load = Load()
        self.fleet = Snapshot(starting=False)
        self.window.clear()


class JobProgress:
    """Follows a job through one run of the command. Every method may be called from any thread.

    Attributes:
        before: Rows that were done before this run.
        past: Earlier runs of the job.
        versions: Package to version, of this process and of each node that has reported.

    Args:
        spec: Spec of the job.
        planned: Input rows of the job.
        before: Rows that were done before this run.
        spent: Resources that earlier runs have used.
        history: Points of earlier runs.
        refusals: Function that returns the number of the driver's requests that the output's storage has refused.
    """

    def __init__(
        self,
        spec: JobSpec,
        planned: int,
        before: int,
        spent: JobUsage | None = None,
        history: list[Point] | None = None,
        refusals: Callable[[], int] = lambda: 0,
    ) -> None:
        self._spec, self._planned, self.before = spec, planned, before
        self._refusals = refusals
        self.past: list[PastRun] = []
        self.versions = versions()
        self._lock = threading.Lock()
        self._earlier: Totals | None = None if before else Totals()
        self._history = History(history or [])
        self._fleets = _Fleets(max(1, spec.replicas.gpus), spent or JobUsage())
        self._started = time.time()
        self._final: Totals | None = None

    @property
    def currency(self) -> str:
        """Currency of the cost."""
        return self._spec.cost.currency

    @property
    def history(self) -> list[Point]:
        """The job over time, including earlier runs."""
        with self._lock:
            return list(self._history.points)

    @property
    def began(self) -> float:
        """Start of the job's first run (Unix time, s); of this run if there is no history."""
        with self._lock:
            return min([self._started, *(point.at for point in self._history.points[:1])])

    @property
    def silent_s(self) -> float:
        """Seconds since the last call of `observe`, which comes a few times a second; 0 while there is no fleet."""
        observed = self._fleets.observed
        return 0.0 if observed is None else time.monotonic() - observed

    def set_earlier_totals(self, earlier: Totals) -> None:
        """Set the sums over the rows of earlier runs, once their footers are read."""
        with self._lock:
            self._earlier = earlier

    def observe(self, fleet: Snapshot) -> None:
        """Observe the current state of the fleet."""
        with self._lock:
            self._fleets.observe(fleet)
            self.versions |= fleet.versions
            self._add_point()

    def end_fleet(self) -> None:
        """Note that the fleet has ended. Another one may follow."""
        with self._lock:
            self._add_point(always=True)
            self._fleets.end()

    def finish(self, totals: Totals) -> None:
        """Note that the job is complete, with the sums of its manifest."""
        with self._lock:
            self._final = totals

    def snapshot(self) -> ProgressSnapshot:
        """Return the current state of the job."""
        with self._lock:
            fleets = self._fleets
            mine, spent = fleets.done, fleets.spent
            totals = self._final or (None if self._earlier is None else self._earlier.plus(mine))
            seen = totals or mine
            done = self._planned if self._final is not None else min(self._planned, self.before + mine.rows)
            rows_s, tokens_s = fleets.window.rates()
            spent.output_errors += self._refusals()
            price = self._spec.cost.device_hour
            cost = None if price is None else price * spent.device_s / 3600
            return ProgressSnapshot(
                self._planned, done, totals, seen, fleets.fleet, fleets.slots, rows_s, tokens_s,
                eta(self._planned - done, seen, tokens_s, rows_s), spent, cost, self._started, fleets.progressed,
                self._final is not None,
            )  # fmt: skip

    def _add_point(self, *, always: bool = False) -> None:
        if self._earlier is None:
            return  # without the earlier rows' tokens the point would be too low
        mine = self._fleets.done
        tokens = mine.generated_tokens + self._earlier.generated_tokens
        point = Point(time.time(), self.before + mine.rows, tokens, self._fleets.fleet.replicas)
        self._history.add(point, always=always)
