"""`status`, `verify`, `retry` and `compact`: a job by its output."""

import os
import sys
from typing import Annotated, Any

import typer

from magbatch.cli.options import Json, OutputPath
from magbatch.cli.show import (
    command,
    counted,
    errors,
    exit_code,
    note,
    output_path,
    print_json,
    shown_path,
    with_prefix,
)

commands = typer.Typer()


@commands.command()
def status(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT|ID", help="A job's output.path; with --address, its id on that cluster.")
    ],
    address: Annotated[
        str | None, typer.Option("--address", metavar="URL", help="The cluster's dashboard, http://head:8265.")
    ] = None,
    json: Json = False,
) -> None:
    """Where a job stands, from its output alone: while it runs, and after."""
    job = None
    with errors(json):
        from magbatch.errors import OutputError
        from magbatch.job.status import status as job_status

        if address is None and "/" not in output and not os.path.exists(output):
            address = os.environ.get("RAY_API_SERVER_ADDRESS")  # a name that is no place here is a job's id
        if address is not None:
            from magbatch.cluster import Cluster

            job = Cluster(address, note).job(output)
            output = job.output
        try:
            found = job_status(output_path(output))
        except OutputError:
            if job is None:
                raise
            found = None  # it has not begun yet, or failed before
    if job is not None:
        if json:
            print_json({"cluster": job.to_dict(), "status": found})
            return
        print(f"{job.id}: {job.state}")
        if found is None:
            for line in job.message.splitlines()[-5:]:
                print(f"  {line}")
            print(f"  no rows yet: {output}")
            print(f"Next: {command('logs', job.id, '--address', str(address))}")
            return
    assert found is not None, "an output that cannot be read has raised"
    if json:
        print_json(found)
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
    following = command("verify" if found["complete"] else "status", output)
    print(f"Next: {following if found['complete'] or alive else command('run', 'SPEC') + ', to go on'}")


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


@commands.command()
def verify(output: OutputPath, json: Json = False) -> None:
    """Prove an output from its objects alone: every planned row once, checksums as in the manifest."""
    with errors(json):
        from magbatch.job.ledger import Ledger
        from magbatch.job.verify import verify as verify_job

        found = verify_job(Ledger(output_path(output)), counted("objects checked"))
    problems = list(found.problems) if found.complete else ["no manifest: the job is not complete", *found.problems]
    if json:
        counts = {name: getattr(found, name) for name in ("planned", "answered", "failed", "objects", "complete")}
        print_json(counts | {"verified": found.verified, "problems": problems})
    elif problems:
        print(f"{output}: {len(problems):,} problem{'' if len(problems) == 1 else 's'}")
        for problem in problems:
            print(f"  {with_prefix(problem)}")
        print(f"Next: {_mending(found.complete)}")
    else:
        print(f"planned {found.planned:,} = {found.answered:,} answered + {found.failed:,} dead letters")
        print(f"verified: every row once, in {found.objects:,} objects, every checksum right")
    for line in () if json else found.notes:
        print(f"  {line}")
    raise typer.Exit(0 if found.verified else 1)


def _mending(complete: bool) -> str:
    if not complete:
        return f"{command('run', 'SPEC')}, to complete the job"
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


@commands.command()
def retry(
    output: OutputPath,
    where: Where = None,
    only: Only = None,
    overrides: AskOtherwise = None,
    drop: Drop = False,
    json: Json = False,
) -> None:
    """Ask the rows of a complete job that failed again, into the same dataset."""
    with errors(json):
        from dataclasses import asdict

        from rich.console import Console

        from magbatch.job.retry import Choice
        from magbatch.job.retry import drop as drop_retry
        from magbatch.job.retry import retry as retry_job

        place, choice = output_path(output), Choice.of(where or [], only)
        with os.fdopen(os.dup(2), "w") as stderr:
            console = Console(file=stderr)
            if drop:
                found = drop_retry(place, console)
            else:
                outcome = retry_job(place, choice, overrides or [], console)
    if drop:
        if json:
            print_json({"dropped": found})
        else:
            print(f"{output}: {'the unfinished retry is dropped' if found else 'no retry is unfinished'}")
        return
    code = exit_code(too_many_failed=outcome.too_many_failed)
    if json:
        print_json(asdict(outcome) | {"output": place, "results": f"{place}/results/*.parquet"})
        raise typer.Exit(code)
    if outcome.whole_files:
        print(f"{outcome.whole_files:,} dead letters are whole files that could not be read when the job was planned:")
        print("  no retry reads those; run the mended files as a job of their own")
    if not outcome.rows:
        print(f"{outcome.job}: nothing to retry: there are no {outcome.chosen}")
        return
    again = outcome.rows - outcome.answered
    print(f"{outcome.job}: {outcome.rows:,} rows retried: {outcome.answered:,} answered, {again:,} as before")
    for kind, count in sorted(outcome.failed.items()):
        print(f"  failed again: {kind} {count:,}")
    if outcome.truncated:
        print(f"  truncated again: {outcome.truncated:,}")
    print(f"  the job now: {outcome.totals.answered:,} rows answered, {outcome.totals.failed:,} failed")
    print(f"  results: {shown_path(place)}/results/*.parquet")
    if outcome.too_many_failed:
        print("More rows failed than limits.max_failed_rows allows.", file=sys.stderr)
    print(f"Next: {command('verify', shown_path(place))}")
    raise typer.Exit(code)


@commands.command()
def compact(output: OutputPath, target_mb: TargetMb = 256, json: Json = False) -> None:
    """Merge the many objects of a complete job into a few of a target size."""
    with errors(json):
        from dataclasses import asdict

        from rich.console import Console

        from magbatch.job.compact import compact as compact_job

        place = output_path(output)
        with os.fdopen(os.dup(2), "w") as stderr:
            outcome = compact_job(place, target_mb * 1_000_000, Console(file=stderr))
    if json:
        print_json(asdict(outcome) | {"output": place})
        return
    if not outcome.merged:
        print(f"{outcome.job}: nothing to merge: {outcome.objects:,} objects, {outcome.bytes / 1e6:,.1f} MB")
        return
    print(f"{outcome.job}: {outcome.objects_before:,} objects -> {outcome.objects:,}", end=", ")
    print(f"{outcome.bytes_before / 1e6:,.1f} MB -> {outcome.bytes / 1e6:,.1f} MB")
    print(f"  results: {shown_path(place)}/results/*.parquet")
    print(f"Next: {command('verify', shown_path(place))}")
