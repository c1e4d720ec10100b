"""`plan` checks a spec and shows what a run would do; `run` does it."""

import os
import sys
from typing import Annotated

import typer

from magbatch.cli.command_line import again, set_options
from magbatch.cli.errors import errors, exit_code
from magbatch.cli.options import Json, Limit, Overrides, SpecPath
from magbatch.cli.show import live_console, print_json, say_next
from magbatch.cli.show_plan import after_plan, print_plan
from magbatch.cli.show_run import print_run

commands = typer.Typer()

Shards = Annotated[bool, typer.Option("--shards", help="List every shard.")]
Settings = Annotated[bool, typer.Option("--settings", help="Show all settings, including those with default values.")]


@commands.command()
def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    limit: Limit = None,
    shards: Shards = False,
    settings: Settings = False,
    json: Json = False,
) -> None:
    """Check a job and show what it would do. Starts nothing and writes nothing."""
    with errors(json):
        from magbatch.errors import SpecError
        from magbatch.jobs.preview import preview
        from magbatch.spec import load

        loaded = load(spec, overrides)
        shown = preview(loaded, limit, shards=shards)
    refused = "\n".join(shown.refused)
    if json:
        code = SpecError.exit_code if refused else 0
        error = {"error": SpecError.__name__, "message": refused, "exit_code": code} if refused else {}
        print_json(shown.to_dict() | error)
        raise typer.Exit(code)
    print_plan(shown, all_settings=settings)
    with errors(json):
        if refused:
            sys.stdout.flush()  # the plan comes before the error, even if both go to one file
            raise SpecError(refused)
    say_next(after_plan(shown, spec, overrides, limit, scheduled=loaded.input.incremental and limit is None))


@commands.command()
def run(spec: SpecPath, overrides: Overrides = None, limit: Limit = None, json: Json = False) -> None:
    """Run a job, or continue an interrupted one."""
    with errors(json):
        from magbatch.errors import TooManyFailedError
        from magbatch.jobs.run import run as run_job
        from magbatch.ledger.layout import results_glob
        from magbatch.spec import load

        with live_console() as console:
            try:
                outcome = run_job(load(spec, overrides), console, limit, command=remembered(spec, overrides, limit))
            except TooManyFailedError as error:
                every = [*(overrides or []), "limits.max_failed_rows=100%"]
                error.add_note(f"Next: {again('run', spec, every, limit)}")
                raise
    code = exit_code(too_many_failed=outcome.too_many_failed)
    if json:
        results = results_glob(outcome.report.output)
        print_json(outcome.report.to_dict() | {"already_complete": outcome.already, "results": results})
    else:
        print_run(outcome)
    raise typer.Exit(code)


def remembered(spec: str, overrides: list[str] | None, limit: int | None) -> tuple[str, ...]:
    """Command line that the output stores, for `status` to repeat.

    Args:
        spec: File of the spec.
        overrides: Values of `--set`.
        limit: Value of `--limit`.

    Returns:
        Words after `magbatch`; only `run` if one of them holds a secret.
    """
    from magbatch.spec.secrets import without_secrets

    limited = () if limit is None else ("--limit", str(limit))
    words = ("run", os.path.abspath(spec), *set_options(overrides), *limited)
    return words if all(without_secrets(word) == word for word in words) else ("run",)
