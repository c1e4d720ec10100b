"""Output of `schedule run`, `tick` and `list`."""

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from magbatch.cli.command_line import command, shown_path
from magbatch.cli.show import note, say, say_next
from magbatch.cli.show_run import print_run
from magbatch.counts import counted

if TYPE_CHECKING:
    from magbatch.schedule.listing import ListedProblem, ListedSchedule
    from magbatch.schedule.results import Result
    from magbatch.schedule.tick import TickOutcome


def print_runs(folder: str, results: "Iterable[Result]") -> None:
    """Print what a scheduler has run.

    Args:
        folder: Folder of the specs.
        results: Runs that ended, and problems.
    """
    codes = [result.exit_code for result in results]
    well = sum(code == 0 for code in codes)
    if codes:
        say(f"{folder}: {counted(len(codes), 'run')} ended, {well:,} with exit code 0")
    else:
        say(f"{folder}: no run ended")
    say_next(command("schedule", "list", folder))


def print_ticks(job: str, spec: str, outcomes: "list[TickOutcome]") -> None:
    """Print the outcome of ticks.

    Args:
        job: Name of the job.
        spec: File of the spec.
        outcomes: Outcome of each tick; the requested tick comes last.
    """
    for outcome in outcomes:
        _print_tick(job, outcome)
    if outcomes[-1].outcome is None:
        say_next(command("schedule", "list", os.path.dirname(spec) or "."))


def _print_tick(job: str, outcome: "TickOutcome") -> None:
    from magbatch.spec.secrets import without_secrets

    name = f"{job}: tick {outcome.tick:%Y-%m-%dT%H:%M:%SZ}"
    if outcome.error is not None:
        note(f"{name}: not complete: {without_secrets(str(outcome.error))}")
        return
    files = f"{counted(outcome.files or 0, 'file')} into {shown_path(outcome.output)}"
    result = "no new files" if outcome.state == "empty" else files
    say(f"{name}: {result}{', as before' if outcome.already else ''}")
    if outcome.outcome is not None:
        print_run(outcome.outcome)
    elif outcome.too_many_failed:
        note("More rows failed than limits.max_failed_rows allowed then.")


def print_listing(folder: str, rows: "Sequence[ListedSchedule | ListedProblem]") -> None:
    """Print the schedules of a folder.

    Args:
        folder: Folder of the specs.
        rows: The schedules, and problems of specs or outputs.
    """
    from magbatch.schedule.listing import ListedProblem

    for row in rows:
        if isinstance(row, ListedProblem):
            say(row.problem)
        else:
            _print_schedule(row)
    if rows:
        say_next(command("schedule", "run", folder))
    else:
        say(f'{folder}: no spec here has a schedule; add schedule: {{cron: "0 6 * * *"}} to one')


def _print_schedule(row: "ListedSchedule") -> None:
    say(f"{row.job}: {row.cron} ({row.timezone}), {counted(row.runs, 'tick')} so far")
    if row.last is not None:
        facts = ", ".join(f"{count:,} {name}" for name, count in row.last.facts.items())
        say(
            f"  last: {row.last.tick.isoformat()} {row.last.state}{f', {facts}' if facts else ''}",
            f"  output: {shown_path(row.last.output)}",
        )
    if row.due is not None:
        say(f"  due: {row.due.isoformat()}")
    say(f"  next: {'none in the next 50 years' if row.next is None else row.next.isoformat()}")
