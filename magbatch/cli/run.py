"""`plan` and `run`: a spec looked at, and carried out."""

import json as json_format
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magbatch.cli.options import Json, Limit, Overrides, SpecPath
from magbatch.cli.show import again, command, errors, exit_code, print_json, shown_path

if TYPE_CHECKING:
    from magbatch.job.run import Outcome

commands = typer.Typer()


@commands.command()
def plan(spec: SpecPath, overrides: Overrides = None, limit: Limit = None, shards: Annotated[
    bool, typer.Option("--shards", help="List every shard.")] = False, json: Json = False) -> None:  # fmt: skip
    """Check a job and show what it would do; starts nothing and writes nothing."""
    with errors(json):
        from magbatch.job.preview import listing, preview
        from magbatch.spec import load

        loaded = load(spec, overrides)
        shown = preview(loaded, limit)
        if shards:
            shown["shard_list"] = listing(loaded, limit)
    if json:
        print_json(shown)
        return
    low, high = shown["rows_in_a_shard"]
    print(f"{shown['job']}: {shown['rows']:,} rows in {shown['files']:,} files", end=" -> ")
    print(f"{shown['shards']:,} shards of {low} to {high} rows")
    print(f"output: {shown['output']}")
    for problem in shown["bad_files"]:
        print(f"bad file, becomes a dead letter: {problem}")
    print("settings:")
    _print_settings(shown["settings"], "  ")
    for record in shown.get("shard_list", []):
        print(f"shard {record['shard']}: {record['rows']} rows of {', '.join(record['files'])}")
    first = shown["first_prompt"]
    if first is None:
        print("first prompt: none, the input has no rows")
    elif "error" in first:
        print(f"first prompt: the row would become a dead letter: {first['error']}")
    else:
        parts = f", 1 of {first['parts']} parts" if first["parts"] > 1 else ""
        print(f"first prompt ({first['tokens']:,} tokens, {first['images']} images{parts}, row {first['row_id']}):")
        print("\n".join(f"  | {line}" for line in first["text"].splitlines()))
    for note in shown["notes"]:
        print(f"note: {note}")
    print(f"Next: {again('run', spec, overrides, limit)}")


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
        from rich.console import Console

        from magbatch.job.run import run as run_job
        from magbatch.spec import load

        # A stderr of our own: what Ray and native code say on the shared one stays off the progress line.
        with os.fdopen(os.dup(2), "w") as stderr:
            outcome = run_job(load(spec, overrides), Console(file=stderr), limit)
    code = exit_code(too_many_failed=outcome.too_many_failed)
    output = outcome.report["output"]
    if json:
        print_json(outcome.report | {"already_complete": outcome.already, "results": f"{output}/results/*.parquet"})
    else:
        print_outcome(outcome)
    raise typer.Exit(code)


def print_outcome(outcome: "Outcome") -> None:
    """What a run came to, for a person."""
    output = outcome.report["output"]
    print(f"{outcome.report['job']}: {'complete already, nothing to do' if outcome.already else 'complete'}")
    for line in outcome.lines:
        print(f"  {line}")
    print(f"  results: {shown_path(output)}/results/*.parquet")
    print(f"  report: {shown_path(output)}/_magbatch/report.html")
    if outcome.report["totals"]["failed"]:
        print(f"  dead letters: {shown_path(output)}/errors/*.parquet")
    for question, reasoning, answer in outcome.samples:
        print(f"sample:\n  question:  {question}\n  reasoning: {reasoning}\n  answer:    {answer}")
    if outcome.too_many_failed:
        print("More rows failed than limits.max_failed_rows allows.", file=sys.stderr)
    print(f"Next: {command('verify', shown_path(output))}")
