"""The live progress line on a terminal; without a terminal, one plain line a minute."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Column

from magbatch.counts import counted
from magbatch.report.progress import Eta, JobProgress, ProgressSnapshot

LOG_INTERVAL_S = 60.0  # between two progress lines without a terminal, and in the run's log
BAR_COLUMNS = 20
SPINNER_COLUMNS = 2  # width of the spinner and the blank after it


class ProgressLine:
    """Shows the progress of a job, and lines for a person above it.

    Args:
        console: Console that is written to.
        progress: Progress that is shown.
        note: Function that takes one progress line a minute for the run's log, if the console is a terminal.

    Attributes:
        progress: Progress that is shown.
    """

    def __init__(
        self, console: Console, progress: JobProgress, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self._console = console
        self.progress = progress
        self._note = note
        self._began = self._logged = time.monotonic()
        self._losses_shown = self._troubles_shown = 0
        text = TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, overflow="crop"))
        self._bar = Progress(SpinnerColumn(), text, console=console, transient=True)
        now = progress.snapshot()
        self._task = self._bar.add_task("rows", total=now.planned, completed=now.done, state="starting Ray")

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
        """Show the current state of the job."""
        now, snapshot = time.monotonic(), self.progress.snapshot()
        self._show_events(snapshot)
        text = line(snapshot, now - self._began)
        # The width is read each time, because a terminal may be resized.
        narrow = line(snapshot, now - self._began, self._console.width - SPINNER_COLUMNS)
        self._bar.update(self._task, completed=snapshot.done, state=narrow)
        if now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            (self._note if self._console.is_terminal else self.say)(f"rows {text}")

    def _show_events(self, snapshot: ProgressSnapshot) -> None:
        """Show each lost replica, and each reason why replicas wait, once."""
        fleet = snapshot.fleet
        if fleet.lost < self._losses_shown:  # another fleet of this run counts from zero
            self._losses_shown = self._troubles_shown = 0
        new, self._losses_shown = fleet.lost - self._losses_shown, fleet.lost
        for loss in fleet.losses[-new:] if new else []:
            self.say(loss.line())
        if fleet.trouble is not None and fleet.trouble[0] > self._troubles_shown:
            self._troubles_shown, message = fleet.trouble
            self.say(message)

    def say(self, text: str) -> None:
        """Show one line to a person, above the progress."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def line(snapshot: ProgressSnapshot, starting_s: float, width: int | None = None) -> str:
    """Return the state of a job as one line.

    Args:
        snapshot: State of the job.
        starting_s: Seconds for which its engines have been starting.
        width: Columns of the terminal. If the line is wider, the least important values are left out. None keeps all
            values and shows no bar.
    """
    if snapshot.fleet.starting and not snapshot.complete:
        return f"{snapshot.done:,}/{snapshot.planned:,} · starting the engine, {starting_s:.0f} s"
    share = snapshot.done / snapshot.planned if snapshot.planned else 1.0
    done, speed = f"{snapshot.done:,}/{snapshot.planned:,} ({100 * share:.1f}%)", f"{snapshot.rows_per_s:,.1f} rows/s"
    end, tokens = f"ETA {shown_eta(snapshot.eta)}", f"{snapshot.tokens_per_s:,.0f} tokens/s"
    failed, truncated = f"{snapshot.seen.failed:,} failed", f"{snapshot.truncated:,} truncated"
    replicas = counted(snapshot.fleet.replicas, "replica")
    everything = " · ".join([done, end, speed, tokens, failed, truncated, replicas])
    if width is None:
        return everything
    if len(everything) + BAR_COLUMNS + 1 <= width:
        full = round(share * BAR_COLUMNS)
        return f"[bar.complete]{'━' * full}[/][bar.back]{'━' * (BAR_COLUMNS - full)}[/] {everything}"
    brief_end = "ETA -" if snapshot.eta is None else f"ETA {_duration(snapshot.eta.expected_s)}"
    brief_done = f"{_brief(snapshot.done)}/{_brief(snapshot.planned)} {100 * share:.1f}%"
    brief_speed, brief_failed = f"{_brief(snapshot.rows_per_s)} rows/s", f"{_brief(snapshot.seen.failed)} failed"
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
    return next((text for values in choices if len(text := " · ".join(values)) <= width), brief_done)


def _brief(number: float) -> str:
    """Return a number in at most five characters, up to a trillion: `21.5`, `999`, `12.3k`, `9.88M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 999.5 * size else f"{number / size:.0f}{unit}"
    return f"{number:.3g}" if number < 999.5 else f"{number:.0f}"


def shown_eta(eta: Eta | None) -> str:
    """Return an expected end as `2h13m (2h5m to 2h40m)`; `-` if there is none."""
    if eta is None:
        return "-"
    expected, early, late = map(_duration, eta)
    return expected if early == late else f"{expected} ({early} to {late})"


def _duration(seconds: float) -> str:
    """Return a duration in its two largest units: `2h13m`."""
    left, units = round(seconds), list[str]()
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not units):
            units.append(f"{count}{unit}")
        elif units:
            break
    return "".join(units[:2])
