"""The commands. Each parses first and imports what is heavy after, so that `--help` answers at once.

Exit codes: 0 complete; 1 finished with more dead letters than the spec allows, or not verified;
2 bad spec or input; 3 interrupted, and the same command goes on; 4 a defect in magbatch.
"""

import atexit
import json as json_format
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

import magbatch

CRASHED = 4

app = typer.Typer(
    name="magbatch",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Very large offline jobs of reasoning models over text and image documents.",
)

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="The job's YAML file.")]
OutputPath = Annotated[str, typer.Argument(metavar="OUTPUT", help="The job's output.path, local or s3://.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a field of the spec; may be repeated."),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help="Only N rows, spread evenly, into an output of their own."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for a program, on standard output.")]


@contextmanager
def _errors(as_json: bool) -> Iterator[None]:
    """A job's error is one clear message and its exit code."""
    from magbatch.errors import InterruptedJobError, JobError

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a platform's SIGTERM is as a person's Ctrl-C
    try:
        try:
            yield
        except KeyboardInterrupt as interrupt:
            raise InterruptedJobError("interrupted; what was committed stays") from interrupt
    except JobError as error:
        if as_json:
            print(
                json_format.dumps({"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code})
            )
        else:
            print(f"magbatch: {error}", file=sys.stderr)
        if error.exit_code == 3 and not as_json:
            print("Run the same command again to go on.", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_json(data: Any) -> None:
    print(json_format.dumps(data, indent=1, ensure_ascii=False))


@app.command()
def plan(spec: SpecPath, overrides: Overrides = None, limit: Limit = None, shards: Annotated[
    bool, typer.Option("--shards", help="List every shard.")] = False, json: Json = False) -> None:  # fmt: skip
    """Check a job and show what it would do; starts nothing and writes nothing."""
    with _errors(json):
        from magbatch.job.preview import listing, preview
        from magbatch.spec import load

        loaded = load(spec, overrides)
        shown = preview(loaded, limit)
        if shards:
            shown["shard_list"] = listing(loaded, limit)
    if json:
        _print_json(shown)
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
    print(f"Next: magbatch run {spec}")


def _print_settings(node: dict[str, Any], indent: str) -> None:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{name}:")
            _print_settings(value, indent + "  ")
        else:
            print(f"{indent}{name}: {json_format.dumps(value, ensure_ascii=False)}")


@app.command()
def run(spec: SpecPath, overrides: Overrides = None, limit: Limit = None, json: Json = False) -> None:
    """Run a job, or go on with one that was interrupted."""
    with _errors(json):
        from rich.console import Console

        from magbatch.job.run import run as run_job
        from magbatch.spec import load

        # A stderr of our own: what Ray and native code say on the shared one stays off the progress line.
        with os.fdopen(os.dup(2), "w") as stderr:
            outcome = run_job(load(spec, overrides), Console(file=stderr), limit)
    output = outcome.report["output"]
    if json:
        _print_json(outcome.report | {"already_complete": outcome.already, "results": f"{output}/results/*.parquet"})
        raise typer.Exit(1 if outcome.too_many_failed else 0)
    print(f"{outcome.report['job']}: {'complete already, nothing to do' if outcome.already else 'complete'}")
    for line in outcome.lines:
        print(f"  {line}")
    print(f"  results: {_shown_path(output)}/results/*.parquet")
    print(f"  report: {_shown_path(output)}/_magbatch/report.html")
    if outcome.report["totals"]["failed"]:
        print(f"  dead letters: {_shown_path(output)}/errors/*.parquet")
    for question, reasoning, answer in outcome.samples:
        print(f"sample:\n  question:  {question}\n  reasoning: {reasoning}\n  answer:    {answer}")
    if outcome.too_many_failed:
        print("More rows failed than limits.max_failed_rows allows.", file=sys.stderr)
    print(f"Next: magbatch verify {_shown_path(output)}")
    raise typer.Exit(1 if outcome.too_many_failed else 0)


def _shown_path(output: str) -> str:
    relative = os.path.relpath(output) if not output.startswith("s3://") else output
    return output if relative.startswith("..") else relative


def _output(path: str) -> str:
    return path if path.startswith("s3://") else os.path.abspath(path)


@app.command()
def status(output: OutputPath, json: Json = False) -> None:
    """Where a job stands, from its output alone: while it runs, and after."""
    with _errors(json):
        from magbatch.job.status import status as job_status

        found = job_status(_output(output))
    if json:
        _print_json(found)
        return
    share = f"{100 * found['done'] / found['planned']:.1f}%" if found["planned"] else "100%"
    run = found["run"]
    alive = run is not None and run["alive"] and not found["complete"]
    state = "complete" if found["complete"] else "running" if alive else "not complete"
    print(f"{found['job']}: {state}, {found['done']:,} of {found['planned']:,} rows done ({share})")
    print(f"  {found['answered']:,} answered, {found['failed']:,} failed")
    print(f"  {found['shards_done']:,} of {found['shards']:,} shards done")
    if run is not None:
        _print_run(found, run)
    following = f"magbatch verify {output}" if found["complete"] else f"magbatch status {output}"
    print(f"Next: {following if found['complete'] or alive else 'magbatch run SPEC, to go on'}")


def _print_run(found: dict[str, Any], run: dict[str, Any]) -> None:
    """What the run has last said of itself."""
    from magbatch.job.progress import Eta, shown_eta

    if not found["complete"]:
        up, starting = run["replicas"]["serving"], run["replicas"]["starting"]
        print(f"  {run['rows_per_s']:,.1f} rows/s, {run['tokens_per_s']:,.0f} tokens/s", end=", ")
        print(f"{run['truncated']:,} truncated, {up} replica{'' if up == 1 else 's'} serving, {starting} starting")
        if run["alive"]:
            print(f"  ETA {shown_eta(Eta(**run['eta']) if run['eta'] else None)}")
        print(f"  last sign of life {run['age_s']:,.0f} s ago, from host {run['host']}, process {run['pid']}")
    cost = "" if run["cost"] is None else f", {run['cost']:,.2f} {run['currency']}"
    print(f"  {run['spent']['device_s'] / 3600:,.2f} device hours so far{cost}")


@app.command()
def verify(output: OutputPath, json: Json = False) -> None:
    """Prove an output from its objects alone: every planned row once, checksums as in the manifest."""
    with _errors(json):
        from magbatch.job.ledger import Ledger

        counts, problems = Ledger(_output(output)).verify()
    if json:
        _print_json(counts | {"verified": not problems, "problems": problems})
    elif problems:
        print(f"{output}: {len(problems):,} problem{'' if len(problems) == 1 else 's'}")
        for problem in problems:
            print(f"  {problem}")
        print(f"Next: {_mending(counts)}")
    else:
        print(f"planned {counts['planned']:,} = {counts['answered']:,} answered + {counts['failed']:,} dead letters")
        print(f"verified: every row once, in {counts['objects']:,} objects, every checksum right")
    raise typer.Exit(1 if problems else 0)


def _mending(counts: dict[str, Any]) -> str:
    if not counts["complete"]:
        return "magbatch run SPEC, to complete the job"
    return "bring lost objects back (s3:// versions, backups); or run the spec into a new output.path"


Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="CODE", help="Only dead letters with this error code; may be repeated."),
]
Only = Annotated[
    str | None,
    typer.Option("--only", metavar="truncated", help="Instead of dead letters, rows whose thinking was truncated."),
]
AskOtherwise = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Ask otherwise, such as sampling.max_tokens=8000; may be repeated."
    ),
]
Drop = Annotated[bool, typer.Option("--drop", help="Forget a retry that is not finished, and what it answered.")]
TargetMb = Annotated[
    int,
    typer.Option("--target-mb", min=1, max=4096, metavar="N", help="Size of an object; takes about 2N MB of memory."),
]


@app.command()
def retry(
    output: OutputPath,
    where: Where = None,
    only: Only = None,
    overrides: AskOtherwise = None,
    drop: Drop = False,
    json: Json = False,
) -> None:
    """Ask the rows of a complete job that failed again, into the same dataset."""
    with _errors(json):
        from dataclasses import asdict

        from rich.console import Console

        from magbatch.job.retry import Choice
        from magbatch.job.retry import drop as drop_retry
        from magbatch.job.retry import retry as retry_job

        place, choice = _output(output), Choice.of(where or [], only)
        with os.fdopen(os.dup(2), "w") as stderr:
            console = Console(file=stderr)
            if drop:
                found = drop_retry(place, console)
            else:
                outcome = retry_job(place, choice, overrides or [], console)
    if drop:
        if json:
            _print_json({"dropped": found})
        else:
            print(f"{output}: {'the unfinished retry is dropped' if found else 'no retry is unfinished'}")
        return
    if json:
        _print_json(asdict(outcome) | {"output": place, "results": f"{place}/results/*.parquet"})
        raise typer.Exit(1 if outcome.too_many_failed else 0)
    if outcome.whole_files:
        print(f"{outcome.whole_files:,} dead letters are whole files that could not be read when the job was planned:")
        print("  no retry reads those; run the mended files as a job of their own")
    if not outcome.rows:
        print(f"{outcome.job}: nothing to retry: there are no {outcome.chosen}")
        return
    again = outcome.rows - outcome.answered
    print(f"{outcome.job}: {outcome.rows:,} rows retried: {outcome.answered:,} answered, {again:,} as before")
    for code, count in sorted(outcome.failed.items()):
        print(f"  failed again: {code} {count:,}")
    if outcome.truncated:
        print(f"  truncated again: {outcome.truncated:,}")
    print(f"  the job now: {outcome.totals.answered:,} rows answered, {outcome.totals.failed:,} failed")
    print(f"  results: {_shown_path(place)}/results/*.parquet")
    if outcome.too_many_failed:
        print("More rows failed than limits.max_failed_rows allows.", file=sys.stderr)
    print(f"Next: magbatch verify {_shown_path(place)}")
    raise typer.Exit(1 if outcome.too_many_failed else 0)


@app.command()
def compact(output: OutputPath, target_mb: TargetMb = 256, json: Json = False) -> None:
    """Merge the many objects of a complete job into a few of a target size."""
    with _errors(json):
        from dataclasses import asdict

        from rich.console import Console

        from magbatch.job.compact import compact as compact_job

        place = _output(output)
        with os.fdopen(os.dup(2), "w") as stderr:
            outcome = compact_job(place, target_mb * 1_000_000, Console(file=stderr))
    if json:
        _print_json(asdict(outcome) | {"output": place})
        return
    if not outcome.merged:
        print(f"{outcome.job}: nothing to merge: {outcome.objects:,} objects, {outcome.bytes / 1e6:,.1f} MB")
        return
    print(f"{outcome.job}: {outcome.objects_before:,} objects -> {outcome.objects:,}", end=", ")
    print(f"{outcome.bytes_before / 1e6:,.1f} MB -> {outcome.bytes / 1e6:,.1f} MB")
    print(f"  results: {_shown_path(place)}/results/*.parquet")
    print(f"Next: magbatch verify {_shown_path(place)}")


def _version(show: bool) -> None:
    if show:
        print(f"magbatch {magbatch.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    return


def main() -> None:
    """Entry point of the `magbatch` command."""
    code: str | int | None = 0
    try:
        app()
    except SystemExit as end:
        code = end.code
    except Exception:  # noqa: BLE001 - a defect: its exit code must be none of those that say how a job ended
        traceback.print_exc()
        code = CRASHED
    # Not through the interpreter's teardown: native thread pools can abort there ("terminate called without
    # an active exception", seen after a complete job), and a finished command would end with the wrong code.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
