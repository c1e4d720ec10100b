"""`plan` and `run`: a spec looked at, and carried out."""

import json as json_format
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magbatch.cli.failed import retry_command, retry_lines
from magbatch.cli.options import Json, Limit, Overrides, SpecPath
from magbatch.cli.show import again, command, errors, exit_code, live_console, print_json, shown_path
from magbatch.counts import counted

if TYPE_CHECKING:
    from magbatch.jobs.run import Outcome

SAMPLE_ROWS = 20  # that are tried where the first row of all would fail

commands = typer.Typer()


Shards = Annotated[bool, typer.Option("--shards", help="List every shard.")]
Settings = Annotated[bool, typer.Option("--settings", help="Show all settings, those that are defaults as well.")]


@commands.command()
def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    limit: Limit = None,
    shards: Shards = False,
    settings: Settings = False,
    json: Json = False,
) -> None:
    """Check a job and show what it would do; starts nothing and writes nothing."""
    with errors(json):
        from magbatch.errors import SpecError
        from magbatch.jobs.preview import preview
        from magbatch.spec import load

        loaded = load(spec, overrides)
        shown = preview(loaded, limit, shards=shards)
    refused = "\n".join(shown["refused"])
    if json:
        code = SpecError.exit_code if refused else 0
        print_json(shown | ({"error": SpecError.__name__, "message": refused, "exit_code": code} if refused else {}))
        raise typer.Exit(code)
    _print_plan(shown, all_settings=settings)
    with errors(json):
        if refused:
            sys.stdout.flush()
            raise SpecError(refused)
    print(f"Next: {_after_plan(shown, spec, overrides, limit, scheduled=loaded.input.incremental and limit is None)}")


def _after_plan(
    shown: dict[str, Any], spec: str, overrides: list[str] | None, limit: int | None, *, scheduled: bool
) -> str:
    """The command that follows a plan."""
    if shown["output_state"]["state"] == "complete":
        return command("verify", shown_path(shown["output"]))
    if scheduled:
        return again("schedule tick", spec, overrides)
    if "error" in (shown["first_prompt"] or {}) and limit is None:
        return again("run", spec, overrides, SAMPLE_ROWS)
    return again("run", spec, overrides, limit)


def _print_plan(shown: dict[str, Any], *, all_settings: bool) -> None:
    """A plan for a person: what matters most stands last."""
    from magbatch.jobs.preview import not_default

    low, high = shown["rows_in_a_shard"]
    print(f"{shown['job']}: {counted(shown['rows'], 'row')} in {counted(shown['files'], 'file')}", end=" -> ")
    size = counted(high, "row") if low == high else f"{low} to {counted(high, 'row')}"
    print(f"{counted(shown['shards'], 'shard')} of {size}")
    for record in shown.get("shard_list", []):
        print(f"shard {record['shard']}: {counted(record['rows'], 'row')} of {', '.join(record['files'])}")
    print(f"output: {shown['output']} ({_state(shown)})")
    if all_settings:
        print("settings:")
        _print_settings(shown["settings"], "  ")
    elif shown["settings"]:
        print("settings that are no defaults (--settings shows all):")
        _print_settings(not_default(shown["settings"]), "  ")
    first = shown["first_prompt"]
    if shown["output_state"]["state"] == "complete":
        pass  # nothing is asked any more
    elif first is None:
        print("first prompt: none, the input has no rows")
    elif "error" not in first:
        parts = f", 1 of {first['parts']} parts" if first["parts"] > 1 else ""
        size = f"{counted(first['tokens'], 'token')}, {counted(first['images'], 'image')}"
        print(f"first prompt ({size}{parts}, row {first['row_id']}):")
        print("\n".join(f"  | {line}" for line in first["text"].splitlines()))
    for problem in shown["bad_files"]:
        print(f"bad file, becomes a dead letter: {problem}")
    for note in shown["notes"]:
        print(f"note: {note}")
    if first is not None and "error" in first:
        print(f"WARNING: the first row would become a dead letter: {first['code']}, row {first['row_id']}:")
        print(f"  {first['error']}")
        print("  if other rows are like it, mend the spec or the input first; a dead letter stops no other row")
        print("Look at that row first.")


def _state(shown: dict[str, Any]) -> str:
    """What the output holds, in words."""
    state = shown["output_state"]
    if state["state"] == "complete":
        return f"complete already: {counted(state['answered'], 'row')} answered, {state['failed']:,} failed"
    if state["state"] == "begun":
        return f"{state['done']:,} of {counted(shown['rows'], 'row')} are done; run goes on with the rest"
    if state["state"] == "replaced":
        return "begun by another spec, which has answered nothing: this one takes its place"
    return "new"


def _print_settings(node: dict[str, Any], indent: str) -> None:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{name}:")
            _print_settings(value, indent + "  ")
        else:
            print(f"{indent}{name}: {json_format.dumps(value, ensure_ascii=False)}")


@commands.command()
def run(spec: SpecPath, overrides: Overrides = None, limit: Limit = None, json: Json = False) -> None:
    """Run a job, or go on with one that was interrupted."""
    with errors(json):
        from magbatch.errors import TooManyFailedError
        from magbatch.jobs.run import run as run_job
        from magbatch.spec import load

        with live_console() as console:
            try:
                outcome = run_job(load(spec, overrides), console, limit, command=remembered(spec, overrides, limit))
            except TooManyFailedError as error:
                every = [*(overrides or []), "limits.max_failed_rows=100%"]
                error.add_note(f"Next: {again('run', spec, every, limit)}")
                raise
    code = exit_code(too_many_failed=outcome.too_many_failed)
    output = outcome.report["output"]
    if json:
        print_json(outcome.report | {"already_complete": outcome.already, "results": f"{output}/results/*.parquet"})
    else:
        print_outcome(outcome)
    raise typer.Exit(code)


def remembered(spec: str, overrides: list[str] | None, limit: int | None) -> tuple[str, ...]:
    """The command line as the output remembers it, for `status` to repeat; only its name, if a secret is in it."""
    from magbatch.spec.secrets import without_secrets

    sets = [word for item in overrides or [] for word in ("--set", item)]
    words = ("run", os.path.abspath(spec), *sets, *(() if limit is None else ("--limit", str(limit))))
    return words if all(without_secrets(word) == word for word in words) else ("run",)


def print_outcome(outcome: "Outcome") -> None:
    """What a run came to, for a person."""
    output = outcome.report["output"]
    totals = outcome.report["totals"]
    is_said = outcome.why is not None  # with the codes, an example, and where dead letters are
    none = ", but no row was answered" if totals["failed"] and not totals["answered"] and not is_said else ""
    print(f"{outcome.report['job']}: {'complete already, nothing to do' if outcome.already else 'complete'}{none}")
    for line in outcome.lines:
        print(f"  {line}")
    if totals["answered"]:
        print(f"  results: {shown_path(output)}/results/*.parquet")
    print(f"  report: {shown_path(output)}/_magbatch/report.html")
    if totals["failed"] and not is_said:
        print(f"  dead letters: {shown_path(output)}/errors/*.parquet")
    for line in retry_lines(output, totals["by_code"]):
        print(f"  {line}")
    for question, reasoning, answer in outcome.samples:
        print(f"sample:\n  question:  {question}\n  reasoning: {reasoning}\n  answer:    {answer}")
    if outcome.why is not None:
        print(outcome.why, file=sys.stderr)
    following = retry_command(output, totals["by_code"]) if is_said else command("verify", shown_path(output))
    print(f"Next: {following}")
