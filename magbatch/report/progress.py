"""Progress of a job during one run: rows done, speed, expected end, and the resources used by all its runs.

Counts are of committed rows only, so a number that was shown stays true after a crash.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from magbatch.replica.board import Load, Slot, Snapshot, Usage
from magbatch.replica.losses import MOST_LOSSES, Loss
from magbatch.report.runs import PastRun
from magbatch.rows import ReasoningStatus
from magbatch.spec import JobSpec
from magbatch.totals import Totals, known_fields, summed
from magbatch.versions import versions

RATE_WINDOW_S = 60.0
HISTORY_POINTS = 512  # at most; a page about 7 inches wide shows no more. Beyond it, every other point is dropped.
HISTORY_INTERVAL_S = 2.0  # between two points of a new job; it doubles each time points are dropped
LEAST_RECORDS = 5  # samples that must be seen before their lengths say anything about the remaining rows
Z_90 = 1.645  # standard deviations on either side of the mean that hold 90% of a normal distribution


class Point(NamedTuple):
    """State of a job at one moment, for the curves of the report.

    Attributes:
        at: Unix time (s).
        rows: Rows done.
        tokens: Reasoning and answer tokens of these rows.
        replicas: Replicas that serve.
    """

    at: float
    rows: int
    tokens: int
    replicas: int


@dataclass(slots=True)
class JobUsage:
    """Resources that runs of a job have used.

    Attributes:
        device_s: Seconds for which devices were held: GPUs, or replicas if the job runs on CPUs.
        starved_s: Seconds in which an engine had free slots while rows waited to be begun.
        engine_deaths: Engines that died, or hung, with rows in them.
        restarts: Replicas that replaced an ended one.
        input_errors: Requests that the input's storage refused.
        output_errors: Requests of the driver that the output's storage refused. Replicas count theirs in `use`.
        use: Sums of the usage that replicas report.
        prompt_tokens: Prompt tokens of all answered rows, including answers that a retry has replaced.
        generated_tokens: Reasoning and answer tokens of the same rows.
        lost: Replicas that ended while rows were still to be answered.
        losses: The newest of these losses, `MOST_LOSSES` at most.
    """

    device_s: float = 0.0
    starved_s: float = 0.0
    engine_deaths: int = 0
    restarts: int = 0
    input_errors: int = 0
    output_errors: int = 0
    use: Usage = field(default_factory=Usage)
    prompt_tokens: int = 0
    generated_tokens: int = 0
    lost: int = 0
    losses: list[Loss] = field(default_factory=list)

    @classmethod
    def of(cls, fleet: Snapshot, devices: int) -> Self:
        """Return the usage of one fleet so far.

        Args:
            fleet: Snapshot of the fleet.
            devices: Devices that each replica holds.
        """
        use = Usage()
        for slot in fleet.slots:
            use = use.plus(slot.usage)
        held = devices * sum(slot.seconds for slot in fleet.slots)
        return cls(
            held, fleet.starved_s, fleet.engine_deaths, fleet.restarts, fleet.input_errors, 0, use,
            fleet.done.prompt_tokens, fleet.done.generated_tokens, fleet.lost, fleet.losses,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a record that any version has written with `asdict`."""
        losses = [Loss.from_dict(one) for one in data.get("losses", [])]
        return cls(**known_fields(cls, data) | {"use": Usage(**known_fields(Usage, data["use"])), "losses": losses})

    def plus(self, other: Self) -> Self:
        """Return the sums of both; of the losses, only the newest are kept."""
        both = summed(self, other)
        both.losses = both.losses[-MOST_LOSSES:]
        return both


class Eta(NamedTuple):
    """Seconds until a job is complete: the expected value, and the ends of a 90% interval."""

    expected_s: float
    early_s: float
    late_s: float


def eta(rows_left: int, seen: Totals, tokens_per_s: float, rows_per_s: float) -> Eta | None:
    r"""Estimate when the remaining rows are done at the present speed; None while nothing moves.

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
        started: Begin of this run (Unix time, s).
        progressed: Time of the last commit, else the begin of this run (Unix time, s).
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


class _History:
    """Points of a job over time, thinned so that a job of any length has at most `HISTORY_POINTS`.

    Args:
        points: Points of earlier runs.
    """

    def __init__(self, points: list[Point]) -> None:
        self.points = list(points)
        past_s = self.points[-1].at - self.points[0].at if self.points else 0.0
        self._interval_s = max(HISTORY_INTERVAL_S, past_s / HISTORY_POINTS)

    def add(self, point: Point, *, always: bool = False) -> None:
        """Add a point, unless the last one is younger than the interval.

        Args:
            point: The point.
            always: Whether the point is added in any case.
        """
        last = self.points[-1].at if self.points else 0.0
        if point.at - last < (0 if always else self._interval_s):
            return
        self.points.append(point)
        if len(self.points) > HISTORY_POINTS:
            self.points = self.points[::2]
            self._interval_s *= 2


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


class JobProgress:
    """Follows a job through one run of the command. Every method may be called from any thread.

    Attributes:
        currency: Currency of the cost.
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
        self._planned, self.before = planned, before
        self._devices = max(1, spec.replicas.gpus)
        self._price, self.currency = spec.cost.device_hour, spec.cost.currency
        self._refusals = refusals
        self.past: list[PastRun] = []
        self.versions = versions()
        self._lock = threading.Lock()
        self._earlier: Totals | None = None if before else Totals()
        self._spent = spent or JobUsage()
        self._history = _History(history or [])
        self._window = _RateWindow()
        self._fleet = Snapshot()
        self._last_slots: list[Slot] = []
        self._ended_fleets = Totals()  # committed by fleets of this run that have ended
        self._started = self._progressed = time.time()
        self._observed: float | None = None  # monotonic clock; None while there is no fleet
        self._final: Totals | None = None

    @property
    def history(self) -> list[Point]:
        """The job over time, including earlier runs."""
        with self._lock:
            return list(self._history.points)

    @property
    def began(self) -> float:
        """Begin of the job's first run, if its history reaches back so far (Unix time, s)."""
        with self._lock:
            return min([self._started, *(point.at for point in self._history.points[:1])])

    @property
    def silent_s(self) -> float:
        """Seconds since the last call of `observe`, which comes a few times a second; 0 while there is no fleet."""
        observed = self._observed
        return 0.0 if observed is None else time.monotonic() - observed

    def set_earlier_totals(self, earlier: Totals) -> None:
        """Set the sums over the rows of earlier runs, once their footers are read."""
        with self._lock:
            self._earlier = earlier

    def observe(self, fleet: Snapshot) -> None:
        """Take the present state of the fleet."""
        with self._lock:
            now = self._observed = time.monotonic()
            if fleet.done.rows > self._fleet.done.rows:
                self._progressed = time.time()
            self._fleet = fleet
            self.versions |= fleet.versions
            done = self._ended_fleets.plus(fleet.done)
            if not fleet.starting:
                self._window.add(now, done.rows, done.generated_tokens)
            self._add_point()

    def end_fleet(self) -> None:
        """Note that the fleet has ended. Another one may follow."""
        with self._lock:
            self._observed = None
            self._add_point(always=True)
            self._ended_fleets = self._ended_fleets.plus(self._fleet.done)
            self._spent = self._spent.plus(JobUsage.of(self._fleet, self._devices))
            self._last_slots = self._fleet.slots
            for slot in self._last_slots:
                slot.load = Load()
            self._fleet = Snapshot(starting=False)
            self._window.clear()

    def finish(self, totals: Totals) -> None:
        """Note that the job is complete, with the sums of its manifest."""
        with self._lock:
            self._final = totals

    def snapshot(self) -> ProgressSnapshot:
        """Return the present state of the job."""
        with self._lock:
            mine = self._ended_fleets.plus(self._fleet.done)
            totals = self._final or (None if self._earlier is None else self._earlier.plus(mine))
            seen = totals or mine
            done = self._planned if self._final is not None else min(self._planned, self.before + mine.rows)
            rows_s, tokens_s = self._window.rates()
            spent = self._spent.plus(JobUsage.of(self._fleet, self._devices))
            spent.output_errors += self._refusals()
            cost = None if self._price is None else self._price * spent.device_s / 3600
            return ProgressSnapshot(
                self._planned, done, totals, seen, self._fleet,
                self._fleet.slots or self._last_slots, rows_s, tokens_s,
                eta(self._planned - done, seen, tokens_s, rows_s), spent, cost, self._started, self._progressed,
                self._final is not None,
            )  # fmt: skip

    def _add_point(self, *, always: bool = False) -> None:
        if self._earlier is None:
            return  # without the earlier rows' tokens the point would be too low
        mine = self._ended_fleets.plus(self._fleet.done)
        tokens = mine.generated_tokens + self._earlier.generated_tokens
        self._history.add(Point(time.time(), self.before + mine.rows, tokens, self._fleet.replicas), always=always)
