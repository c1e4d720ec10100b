"""How far a job is: what its runs have done and used, how fast it goes, when it ends; and the line a person sees.

Counts are of committed rows only: what is shown as done survives a crash. What earlier runs have used goes on being
counted; what their rows hold is in the footers of the objects.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, NamedTuple, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Column

from magbatch.counts import counted
from magbatch.replica.board import Load, Slot, Snapshot, Usage
from magbatch.replica.losses import MOST_LOSSES, Loss
from magbatch.report.runs import PastRun
from magbatch.rows import ReasoningStatus
from magbatch.spec import JobSpec
from magbatch.totals import Totals, known_fields
from magbatch.versions import versions

RATE_WINDOW_S = 60.0
LOG_INTERVAL_S = 60.0  # between two lines where there is no terminal
BAR_COLUMNS = 20
HISTORY_POINTS = 512  # at most: then every other one is dropped
HISTORY_INTERVAL_S = 2.0  # between two points of a job that has just begun
LEAST_RECORDS = 5  # fewer say nothing about the lengths of others
Z_90 = 1.645  # standard deviations on either side of the mean that hold 90% of a normal distribution


class Point(NamedTuple):
    """The job at one moment.

    Attributes:
        at: Unix time (s).
        rows: Done.
        tokens: Reasoning and answer, of them, as far as this run and the footers know.
        replicas: That serve.
    """

    at: float
    rows: int
    tokens: int
    replicas: int


@dataclass(slots=True)
class JobUsage:
    """What runs of a job have used.

    Attributes:
        device_s: Seconds for which devices were held: GPUs, or on CPUs replicas.
        starved_s: Seconds in which an engine had free slots while rows remained to be begun.
        engine_deaths: Engines that died, or hung, with rows in them.
        restarts: Replicas that took the place of one that had ended.
        input_errors: Refusals of the input's storage.
        output_errors: Refusals of the output's that the driver met; replicas count theirs in `use`.
        use: What replicas did beside answering.
        prompt_tokens: Of all rows that were answered, those of answers that a retry has replaced too.
        generated_tokens: Reasoning and answer, of the same.
        lost: Replicas that ended while rows were to be answered.
        losses: The last of these.
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
    def of(cls, snapshot: Snapshot, devices: int) -> Self:
        """What one run has used so far, with so many devices a replica."""
        use = Usage()
        for slot in snapshot.slots:
            use.add(slot.usage)
        held = devices * sum(slot.seconds for slot in snapshot.slots)
        return cls(
            held, snapshot.starved_s, snapshot.engine_deaths, snapshot.restarts, snapshot.input_errors, 0, use,
            snapshot.done.prompt_tokens, snapshot.done.generated_tokens, snapshot.lost, snapshot.losses,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Of a record that holds `asdict` of one, of this version or another."""
        losses = [Loss.from_dict(one) for one in data.get("losses", [])]
        return cls(**known_fields(cls, data) | {"use": Usage(**known_fields(Usage, data["use"])), "losses": losses})

    def plus(self, other: Self) -> Self:
        """The sums of both; of the losses, the last ones."""
        sums = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in {"use", "losses"}}
        use = Usage()
        use.add(self.use)
        use.add(other.use)
        return type(self)(**{name: value + getattr(other, name) for name, value in sums.items()}, use=use,
                          losses=[*self.losses, *other.losses][-MOST_LOSSES:])  # fmt: skip


class Eta(NamedTuple):
    """Seconds until a job is complete: expected, and a 90% interval."""

    expected_s: float
    early_s: float
    late_s: float


def eta(rows_left: int, seen: Totals, tokens_per_s: float, rows_per_s: float) -> Eta | None:
    """When the rest is done at this speed; None while nothing moves.

    The rest is as long as the rows seen so far, give or take: the interval holds both that its lengths scatter, and
    that the mean of those seen is no more than an estimate (the variance of a sum of R draws, and R times the
    standard error of a mean of N). Rows that take longest are seen last: early in a job, the late end is the likelier.

    Args:
        rows_left: Rows that are not done.
        seen: Totals of rows that are.
        tokens_per_s: Generated tokens a second.
        rows_per_s: Rows a second, for jobs in which no token was generated.
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
    """A job at one moment.

    Attributes:
        planned: Its rows.
        done: Rows that are done.
        totals: Of all committed rows; None while the footers of earlier ones are being read.
        seen: Of those that are known.
        snapshot: The fleet.
        places: Of its replicas, or of those of the last one that has ended.
        rows_per_s: In the last minute.
        tokens_per_s: Generated ones, in the last minute.
        eta: When it ends.
        spent: What all its runs have used.
        cost: Of that, in the spec's currency; None without a price.
        started: When this run began (Unix time, s).
        progressed: When rows were last committed, else when this run began (Unix time, s).
        complete: Its manifest is written.
    """

    planned: int
    done: int
    totals: Totals | None
    seen: Totals
    snapshot: Snapshot
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
        """Samples whose thinking was truncated."""
        return self.seen.by_status.get(ReasoningStatus.TRUNCATED, 0)


class JobProgress:
    """Follows a job through one run of the command; any thread may ask where it stands.

    Attributes:
        currency: Of its cost.

    Args:
        spec: The job.
        planned: Its rows.
        before: Rows that were done before this run.
        spent: What earlier runs have used.
        history: Of them.
        refusals: Tells how many requests of the driver's the output's storage has refused.
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
        self._planned, self._before = planned, before
        self._devices = max(1, spec.replicas.gpus)
        self._price, self.currency = spec.cost.device_hour, spec.cost.currency
        self._refusals = refusals
        self._lock = threading.Lock()
        self._earlier: Totals | None = None if before else Totals()
        self._spent = spent or JobUsage()
        self._history = list(history or [])
        past_s = self._history[-1].at - self._history[0].at if self._history else 0.0
        self._interval_s = max(HISTORY_INTERVAL_S, past_s / HISTORY_POINTS)
        self._watched = False
        self._snapshot = Snapshot()
        self.past: list[PastRun] = []  # runs before this one
        self.versions = versions()  # of all nodes, as they come
        self._slots: list[Slot] = []
        self._fleets = Totals()  # of this run's fleets that have ended
        self._window: deque[tuple[float, int, int]] = deque()
        self._started = self._progressed = time.time()
        self._looked = time.monotonic()
        self._final: Totals | None = None

    @property
    def before(self) -> int:
        """Rows that were done before this run."""
        return self._before

    @property
    def history(self) -> list[Point]:
        """The job over time, earlier runs included."""
        with self._lock:
            return list(self._history)

    @property
    def began(self) -> float:
        """When the job's first run began, as far as its history tells (Unix time, s)."""
        with self._lock:
            return min([self._started, *(point.at for point in self._history[:1])])

    @property
    def silent_s(self) -> float:
        """Seconds since the fleet was last looked at, as it is a few times a second; 0 while there is none."""
        return time.monotonic() - self._looked if self._watched else 0.0

    def set_earlier_totals(self, earlier: Totals) -> None:
        """What the rows of earlier runs hold was read from their objects."""
        with self._lock:
            self._earlier = earlier

    def observe(self, snapshot: Snapshot) -> None:
        """The fleet is like this now."""
        with self._lock:
            now = self._looked = time.monotonic()
            self._watched = True
            if snapshot.done.rows > self._snapshot.done.rows:
                self._progressed = time.time()
            self._snapshot = snapshot
            self.versions |= snapshot.versions
            done = self._fleets.plus(snapshot.done)
            if not snapshot.starting:
                self._window.append((now, done.rows, done.generated_tokens))
                while now - self._window[0][0] > RATE_WINDOW_S:
                    self._window.popleft()
            self._note(self._point())

    def end_fleet(self) -> None:
        """The fleet has ended; another may come."""
        with self._lock:
            self._watched = False
            self._note(self._point(), always=True)
            self._fleets = self._fleets.plus(self._snapshot.done)
            self._spent = self._spent.plus(JobUsage.of(self._snapshot, self._devices))
            self._slots = self._snapshot.slots
            for slot in self._slots:
                slot.load = Load()
            self._snapshot = Snapshot(starting=False)
            self._window.clear()

    def finish(self, totals: Totals) -> None:
        """The job is complete."""
        with self._lock:
            self._final = totals

    def standing(self) -> ProgressSnapshot:
        """Where the job stands now."""
        with self._lock:
            mine = self._fleets.plus(self._snapshot.done)
            totals = self._final or (None if self._earlier is None else self._earlier.plus(mine))
            seen = totals or mine
            done = self._planned if self._final is not None else min(self._planned, self._before + mine.rows)
            rows_s, tokens_s = self._rates()
            spent = self._spent.plus(JobUsage.of(self._snapshot, self._devices))
            spent.output_errors += self._refusals()
            cost = None if self._price is None else self._price * spent.device_s / 3600
            return ProgressSnapshot(
                self._planned, done, totals, seen, self._snapshot,
                self._snapshot.slots or self._slots, rows_s, tokens_s,
                eta(self._planned - done, seen, tokens_s, rows_s), spent, cost, self._started, self._progressed,
                self._final is not None,
            )  # fmt: skip

    def _rates(self) -> tuple[float, float]:
        if len(self._window) < 2:
            return 0.0, 0.0
        (then, rows_then, tokens_then), (now, rows, tokens) = self._window[0], self._window[-1]
        seconds = max(now - then, 1e-9)
        return (rows - rows_then) / seconds, (tokens - tokens_then) / seconds

    def _point(self) -> Point:
        mine = self._fleets.plus(self._snapshot.done)
        tokens = mine.generated_tokens + (self._earlier.generated_tokens if self._earlier is not None else 0)
        return Point(time.time(), self._before + mine.rows, tokens, self._snapshot.replicas)

    def _note(self, point: Point, *, always: bool = False) -> None:
        if self._earlier is None:
            return  # its tokens would be too few
        last = self._history[-1].at if self._history else 0.0
        if point.at - last < (0 if always else self._interval_s):
            return
        self._history.append(point)
        if len(self._history) > HISTORY_POINTS:
            self._history = self._history[::2]
            self._interval_s *= 2


class ProgressLine:
    """The live line on a terminal; a plain line a minute elsewhere.

    Args:
        console: Where it goes.
        progress: What it shows.

    Attributes:
        progress: The same.
    """

    def __init__(self, console: Console, progress: JobProgress) -> None:
        self._console = console
        self.progress = progress
        self._began = self._logged = time.monotonic()
        self._lost = self._troubles = 0
        text = TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="crop"))
        self._bar = Progress(SpinnerColumn(), text, console=console, transient=True)
        standing = progress.standing()
        self._task = self._bar.add_task("rows", total=standing.planned, completed=standing.done, state="starting Ray")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self) -> None:
        """Show where the job stands."""
        now, standing = time.monotonic(), self.progress.standing()
        snapshot = standing.snapshot
        if snapshot.lost < self._lost:  # another fleet of this run
            self._lost = self._troubles = 0
        unsaid, self._lost = snapshot.lost - self._lost, snapshot.lost
        for loss in snapshot.losses[-unsaid:] if unsaid else []:
            self.say(loss.line())
        if snapshot.trouble is not None and snapshot.trouble[0] > self._troubles:
            self._troubles, message = snapshot.trouble
            self.say(message)
        text = line(standing, now - self._began)
        # Asked for each time: a terminal's width changes. The spinner and the blank after it take two columns.
        narrow = line(standing, now - self._began, self._console.width - 2)
        self._bar.update(self._task, completed=standing.done, state=narrow)
        if not self._console.is_terminal and now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            self.say(f"rows {text}")

    def say(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def line(standing: ProgressSnapshot, starting_s: float, width: int | None = None) -> str:
    """Where a job stands, on one line.

    Args:
        standing: It.
        starting_s: For which its engines have been starting (seconds).
        width: Columns that there are; what matters least goes first. None shows all, without a bar.
    """
    if standing.snapshot.starting and not standing.complete:
        return f"{standing.done:,}/{standing.planned:,} · starting the engine, {starting_s:.0f} s"
    share = standing.done / standing.planned if standing.planned else 1.0
    done, speed = f"{standing.done:,}/{standing.planned:,} ({100 * share:.1f}%)", f"{standing.rows_per_s:,.1f} rows/s"
    end, tokens = f"ETA {shown_eta(standing.eta)}", f"{standing.tokens_per_s:,.0f} tokens/s"
    failed, truncated = f"{standing.seen.failed:,} failed", f"{standing.truncated:,} truncated"
    replicas = counted(standing.snapshot.replicas, "replica")
    everything = " · ".join([done, end, speed, tokens, failed, truncated, replicas])
    if width is None:
        return everything
    if len(everything) + BAR_COLUMNS + 1 <= width:
        full = round(share * BAR_COLUMNS)
        return f"[bar.complete]{'━' * full}[/][bar.back]{'━' * (BAR_COLUMNS - full)}[/] {everything}"
    brief_end = "ETA -" if standing.eta is None else f"ETA {_duration(standing.eta.expected_s)}"
    brief_done = f"{_brief(standing.done)}/{_brief(standing.planned)} {100 * share:.1f}%"
    brief_speed, brief_failed = f"{_brief(standing.rows_per_s)} rows/s", f"{_brief(standing.seen.failed)} failed"
    choices = [
        [done, end, speed, tokens, failed, truncated, replicas],
        [done, end, speed, tokens, failed, replicas],
        [done, brief_end, speed, tokens, failed, replicas],
        [done, brief_end, speed, failed, replicas],
        [brief_done, brief_end, brief_speed, brief_failed, replicas],
        [brief_done, brief_end, brief_speed, brief_failed],
        [brief_done, brief_end, brief_failed],
        [brief_done, brief_end],
    ]
    return next((text for parts in choices if len(text := " · ".join(parts)) <= width), brief_done)


def _brief(number: float) -> str:
    """A number in at most five characters, up to a trillion: `21.5`, `999`, `12.3k`, `9.88M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 999.5 * size else f"{number / size:.0f}{unit}"
    return f"{number:.3g}" if number < 999.5 else f"{number:.0f}"


def shown_eta(eta: Eta | None) -> str:
    """As `2h13m (2h5m to 2h40m)`."""
    if eta is None:
        return "-"
    expected, early, late = map(_duration, eta)
    return expected if early == late else f"{expected} ({early} to {late})"


def _duration(seconds: float) -> str:
    """The two largest units of it."""
    left, parts = round(seconds), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return "".join(parts[:2])
