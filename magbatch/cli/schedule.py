"""`schedule run`, `tick` and `list`: jobs that run by themselves."""

import os
import sys
from typing import Annotated

import typer

from magbatch import guard
from magbatch.cli.options import Json, Overrides, SpecPath
from magbatch.cli.run import print_outcome
from magbatch.cli.show import command, errors, live_console, print_json, shown_path
from magbatch.counts import counted

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Jobs that run by themselves.")

SpecFolder = Annotated[str, typer.Argument(metavar="DIR", help="A folder; every *.yaml in it that has a schedule.")]
Once = Annotated[bool, typer.Option("--once", help="Run what is due now, and end.")]
At = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help="The tick, such as 2026-11-24T06:00; left out: the latest by its cron."),
]


@commands.command("run")
def schedule_run(folder: SpecFolder, once: Once = False, json: Json = False) -> None:
    """Run the jobs of a folder when they are due, until interrupted."""
    with errors(json):
        from magbatch.schedule.scheduler import Scheduler, spec_files, worst

        spec_files(folder)
        scheduler = Scheduler(folder, lambda text: print(text, file=sys.stderr, flush=True))
        runs, stopped = scheduler.runs, False
        try:
            scheduler.run(once=once)
        except KeyboardInterrupt:
            stopped = True
    code = 0 if stopped else worst(runs)
    if json:
        print_json({"runs": [*runs], "stopped": stopped, "exit_code": code})
        raise typer.Exit(code)
    well = sum(run["exit_code"] == 0 for run in runs)
    print(f"{folder}: {counted(len(runs), 'run')} ended, {well:,} of them well" if runs else f"{folder}: no run ended")
    print(f"Next: {command('schedule', 'list', folder)}")
    raise typer.Exit(code)


@commands.command("tick")
def schedule_tick(spec: SpecPath, at: At = None, overrides: Overrides = None, json: Json = False) -> None:
    """Run one tick of a schedule now, after those that were begun and are not complete."""
    with errors(json):
        from magbatch.schedule.tick import chosen, run_tick
        from magbatch.spec import load
        from magbatch.spec.secrets import without_secrets

        loaded = load(spec, overrides)
        with live_console() as console:
            outcomes = run_tick(loaded, chosen(loaded, at), console)
    code = max(one.exit_code for one in outcomes)
    guard.announce(code)
    for one in outcomes:
        if one.error is not None:
            guard.tell_starter(f"the run of {one.tick.isoformat()}: {without_secrets(str(one.error))}")
    if json:
        print_json({"job": loaded.name, "ticks": [one.to_dict() for one in outcomes]})
        raise typer.Exit(code)
    for one in outcomes:
        if one.error is not None:
            print(
                f"{loaded.name}: tick {one.tick:%Y-%m-%dT%H:%M:%SZ}: not complete: {without_secrets(str(one.error))}",
                file=sys.stderr,
            )
            continue
        count = f"{one.files:,} file{'' if one.files == 1 else 's'}"
        said = "no new files" if one.state == "empty" else f"{count} into {shown_path(one.output)}"
        print(f"{loaded.name}: tick {one.tick:%Y-%m-%dT%H:%M:%SZ}: {said}{', as before' if one.already else ''}")
        if one.outcome is not None:
            print_outcome(one.outcome)
        elif one.too_many_failed:
            print("More rows failed than limits.max_failed_rows allowed then.", file=sys.stderr)
    if outcomes[-1].outcome is None:
        print(f"Next: {command('schedule', 'list', os.path.dirname(spec) or '.')}")
    raise typer.Exit(code)


@commands.command("list")
def schedule_list(folder: SpecFolder, json: Json = False) -> None:
    """Show what the schedules of a folder have done last, and when they run next."""
    with errors(json):
        from datetime import UTC, datetime

        from magbatch.schedule.scheduler import listing

        rows = listing(folder, datetime.now(UTC))
    code = 2 if any("problem" in row for row in rows) else 0
    if json:
        print_json(rows)
        raise typer.Exit(code)
    for row in rows:
        if "problem" in row:
            print(row["problem"])
            continue
        print(f"{row['job']}: {row['cron']} ({row['timezone']}), {row['runs']:,} ticks so far")
        last = row["last"]
        if last is not None:
            facts = ", ".join(f"{last[name]:,} {name}" for name in ("files", "rows", "failed") if name in last)
            print(f"  last: {last['tick']} {last['state']}{f', {facts}' if facts else ''}")
            print(f"  output: {shown_path(last['output'])}")
        if row["due"] is not None:
            print(f"  due: {row['due']}")
        print(f"  next: {row['next']}")
    if rows:
        print(f"Next: {command('schedule', 'run', folder)}")
    else:
        print(f'{folder}: no spec here has a schedule; add schedule: {{cron: "0 6 * * *"}} to one')
    raise typer.Exit(code)
