"""What is going on while a job runs: the board that its replicas report to, and the line a person sees.

Counts are of committed rows only: what the line says is done survives a crash.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from magbatch.errors import JobError
from magbatch.job.replica import Tally

RATE_WINDOW_S = 60.0
LOG_INTERVAL_S = 15.0  # between two lines where there is no terminal
SILENT_REPLICA_S = 30.0  # a replica that has not reported for so long is not counted as up


@dataclass(slots=True)
class Snapshot:
    """The state of a run at one moment.

    Attributes:
        done: What this run has committed.
        replicas: Replicas that serve.
        starting: Whether none has served yet.
        engine_error: What the first of the engines that failed to start said; None if all started.
        failed_starts: Engines that failed to start since one did.
        engine_deaths: Engines that died while rows were in them.
        trouble: What keeps replicas waiting, with its number; None while nothing ever did.
        failure: What stops the job, from the task or replica that met it first; None while nothing does.
    """

    done: Tally = field(default_factory=Tally)
    replicas: int = 0
    starting: bool = True
    engine_error: str | None = None
    failed_starts: int = 0
    engine_deaths: int = 0
    trouble: tuple[int, str] | None = None
    failure: JobError | None = None


class BoardState:
    """The board's memory: small, and bounded by the shards and replicas of one run."""

    def __init__(self) -> None:
        self._done = Tally()
        self._begun: set[int] = set()
        self._strikes: dict[int, dict[str, int]] = {}
        self._seen: dict[str, float] = {}
        self._served = False
        self._engine_error: str | None = None
        self._failed_starts = 0
        self._engine_deaths = 0
        self._trouble: tuple[int, str] | None = None
        self._failure: JobError | None = None
        self._stopping = False

    def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        """See `Board.begin`."""
        first = shard not in self._begun
        self._begun.add(shard)
        return first, self._strikes.get(shard, {})

    def strike(self, rows: dict[int, list[str]]) -> None:
        """See `Board.strike`."""
        self._engine_deaths += 1
        for shard, row_ids in rows.items():
            strikes = self._strikes.setdefault(shard, {})
            for row_id in row_ids:
                strikes[row_id] = strikes.get(row_id, 0) + 1

    def report(self, replica: str, tally: Tally) -> bool:
        """See `Board.report`."""
        if replica not in self._seen:
            self._failed_starts, self._engine_error = 0, None
        self._seen[replica] = time.monotonic()
        self._served = True
        for item in fields(Tally):
            setattr(self._done, item.name, getattr(self._done, item.name) + getattr(tally, item.name))
        return self._stopping

    def engine_failed(self, message: str) -> None:
        """An engine did not start."""
        if not self._failed_starts:
            self._engine_error = message
        self._failed_starts += 1

    def trouble(self, message: str) -> None:
        """See `Board.trouble`."""
        self._trouble = ((self._trouble[0] if self._trouble else 0) + 1, message)

    def failed(self, error: JobError) -> None:
        """A task or a replica met what stops the job; Ray would hand on no more than its text."""
        self._failure = self._failure or error

    def left(self, replica: str) -> None:
        """See `Board.left`."""
        self._seen.pop(replica, None)

    def stop(self) -> None:
        """Ask every replica, with its next report, to stop."""
        self._stopping = True

    def snapshot(self) -> Snapshot:
        """The state now."""
        now = time.monotonic()
        up = sum(now - seen < SILENT_REPLICA_S for seen in self._seen.values())
        return Snapshot(
            self._done, up, not self._served, self._engine_error, self._failed_starts,
            self._engine_deaths, self._trouble, self._failure,
        )  # fmt: skip


class ProgressLine:
    """The live line on a terminal; a plain line now and then elsewhere.

    Args:
        console: Where it goes.
        planned: Rows of the job.
        before: Rows that were done before this run.
    """

    def __init__(self, console: Console, planned: int, before: int) -> None:
        self._console = console
        self._planned = planned
        self._before = before
        self._began = time.monotonic()
        self._history: deque[tuple[float, int, int]] = deque()
        self._logged = self._began
        self._deaths = self._troubles = 0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("rows", total=planned, completed=before, state="starting Ray")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        now = time.monotonic()
        done = snapshot.done.answered + snapshot.done.failed
        tokens = snapshot.done.reasoning_tokens + snapshot.done.answer_tokens
        if not snapshot.starting:
            self._history.append((now, done, tokens))
            while self._history and now - self._history[0][0] > RATE_WINDOW_S:
                self._history.popleft()
        if snapshot.engine_deaths > self._deaths:
            self._deaths = snapshot.engine_deaths
            self.say(
                f"an engine died (number {self._deaths}); its replica is replaced and its open rows are asked again"
            )
        if snapshot.trouble is not None and snapshot.trouble[0] > self._troubles:
            self._troubles, message = snapshot.trouble
            self.say(message)
        text = self._text(snapshot, done, now)
        self._bar.update(self._task, completed=self._before + done, state=text)
        if not self._console.is_terminal and now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            self.say(f"rows {text}")

    def say(self, text: str) -> None:
        """One line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _text(self, snapshot: Snapshot, done: int, now: float) -> str:
        if snapshot.starting:
            return f"{self._before + done}/{self._planned} · starting the engine, {now - self._began:.0f} s"
        (then, rows_then, tokens_then), (_, _, tokens) = self._history[0], self._history[-1]
        seconds = max(now - then, 1e-9)
        rows_s = (done - rows_then) / seconds if len(self._history) > 1 else 0.0
        tokens_s = (tokens - tokens_then) / seconds if len(self._history) > 1 else 0.0
        left = self._planned - self._before - done
        eta = str(timedelta(seconds=round(left / rows_s))) if rows_s > 0 else "-"
        return (
            f"{self._before + done:,}/{self._planned:,} · {rows_s:,.1f} rows/s · {tokens_s:,.0f} tokens/s"
            f" · {snapshot.done.failed:,} failed · {snapshot.done.truncated:,} truncated"
            f" · {snapshot.replicas} replica{'' if snapshot.replicas == 1 else 's'} · ETA {eta}"
        )


Watch = Callable[[Snapshot], None]
