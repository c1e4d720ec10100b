"""`schedule run`, `tick` and `list`: commands about jobs that run by a schedule."""

from typing import Annotated

import typer

from magbatch import guard
from magbatch.cli.errors import errors
from magbatch.cli.options import Json, Overrides, SpecPath
from magbatch.cli.show import live_console, note, print_json
from magbatch.cli.show_schedule import print_listing, print_runs, print_ticks

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Jobs that run by a schedule.")

SpecFolder = Annotated[
    str, typer.Argument(metavar="DIR", help="Folder of specs. Each .yaml file with a schedule is run when it is due.")
]
Once = Annotated[bool, typer.Option("--once", help="Run the ticks that are due now, then end.")]
At = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help="Time of the tick, such as 2026-11-24T06:00. Default: the latest tick."),
]


@commands.command("run")
def schedule_run(folder: SpecFolder, once: Once = False, json: Json = False) -> None:
    """Run the jobs of a folder when they are due, until interrupted."""
    with errors(json):
        from magbatch.schedule.results import worst
        from magbatch.schedule.scheduler import Scheduler

        scheduler, stopped = Scheduler(folder, note), False
        try:
            scheduler.run(once=once)
        except KeyboardInterrupt:
            stopped = True
    code = 0 if stopped else worst(scheduler.results)
    if json:
        runs = [result.to_dict() for result in scheduler.results]
        print_json({"runs": runs, "stopped": stopped, "exit_code": code})
    else:
        print_runs(folder, scheduler.results)
    raise typer.Exit(code)


@commands.command("tick")
def schedule_tick(spec: SpecPath, at: At = None, overrides: Overrides = None, json: Json = False) -> None:
    """Run one tick of a schedule now, after earlier ticks that are not complete."""
    with errors(json):
        from magbatch.schedule.tick import chosen, run_tick
        from magbatch.spec import load
        from magbatch.spec.secrets import without_secrets

        loaded = load(spec, overrides)
        with live_console() as console:
            outcomes = run_tick(loaded, chosen(loaded, at), console)
    code = max(outcome.exit_code for outcome in outcomes)
    guard.announce(code)
    for outcome in outcomes:
        if outcome.error is not None:
            guard.tell_starter(f"the run of {outcome.tick.isoformat()}: {without_secrets(str(outcome.error))}")
    if json:
        print_json({"job": loaded.name, "ticks": [outcome.to_dict() for outcome in outcomes]})
    else:
        print_ticks(loaded.name, spec, outcomes)
    raise typer.Exit(code)


@commands.command("list")
def schedule_list(folder: SpecFolder, json: Json = False) -> None:
    """Show what each schedule of a folder did last, and when it runs next."""
    with errors(json):
        from datetime import UTC, datetime

        from magbatch.schedule.listing import ListedProblem, listing

        rows = listing(folder, datetime.now(UTC))
    if json:
        print_json([row.to_dict() for row in rows])
    else:
        print_listing(folder, rows)
    raise typer.Exit(2 if any(isinstance(row, ListedProblem) for row in rows) else 0)
