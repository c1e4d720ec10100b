"""`status`, `verify`, `retry` and `compact`: a job by its output."""

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magbatch.cli.failed import retry_command, retry_lines
from magbatch.cli.options import Json, SpecLimit, SpecOrOutput, SpecOverrides
from magbatch.cli.show import command, errors, exit_code, live_console, note, print_json, shown_path, with_prefix
from magbatch.cli.show import counted as counting
from magbatch.cli.target import SPEC_SUFFIXES, Target, target
from magbatch.counts import counted, shown_time

if TYPE_CHECKING:
    from magbatch.jobs.status import JobStatus

commands = typer.Typer()


@commands.command()
def status(
    output: Annotated[
        str,
        typer.Argument(
            metavar="SPEC|OUTPUT|ID", help="A job's spec or output.path; with --address, its id on that cluster."
        ),
    ],
    address: Annotated[
        str | None, typer.Option("--address", metavar="URL", help="The cluster's dashboard, http://head:8265.")
    ] = None,
    overrides: SpecOverrides = None,
    limit: SpecLimit = None,
    json: Json = False,
) -> None:
    """Where a job stands, from its output alone: while it runs, and after."""
    job = None
    with errors(json):
        from magbatch.errors import OutputError
        from magbatch.jobs.status import job_status

        is_path = "/" in output or os.path.exists(output) or output.endswith(SPEC_SUFFIXES)
        if address is None and not is_path:
            address = os.environ.get("RAY_API_SERVER_ADDRESS")  # a name that is no place here is a job's id
        if address is not None:
            from magbatch.remote import Cluster

            job = Cluster(address, note).job(output)
            output = job.output
        try:
            about = target(output, overrides, limit)
            found = job_status(about.output)
        except OutputError:
            if job is None:
                raise
            found = None  # it has not begun yet, or failed before
    if job is not None:
        if json:
            print_json({"cluster": job.to_dict(), "status": None if found is None else found.to_dict()})
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
        print_json(found.to_dict() | {"next": _following(found, about)})
        return
    for line in _status_lines(found):
        print(line)
    print(f"Next: {_following(found, about)}")


def _status_lines(found: "JobStatus") -> list[str]:
    """A job's standing for a person."""
    from magbatch.jobs.status import JobState

    share = f"{100 * found.done / found.planned:.1f}%" if found.planned else "100%"
    lines = [
        f"{found.job}: {found.state}, {found.done:,} of {counted(found.planned, 'row')} done ({share})",
        f"  {found.answered:,} answered, {found.failed:,} failed",
        f"  {found.shards_done:,} of {counted(found.shards, 'shard')} done",
    ]
    when = "at a time that is not known" if found.at is None else f"at {shown_time(found.at)}"
    why = (found.why or "").splitlines()[:1]
    code = f", with exit code {found.exit_code}" if found.exit_code else ""
    match found.state:
        case JobState.ENDED_EARLY | JobState.FAILED:
            lines.append(f"  {found.state} {when}{code}: {''.join(why)}")
        case JobState.INTERRUPTED:
            lines.append(f"  interrupted {when}{code}; what was committed stays")
        case JobState.KILLED:
            lines.append(f"  its process on this machine is gone, and could not say why; last sign of life {when}")
        case JobState.LOST:
            lines.append(f"  no sign of life since {when.removeprefix('at ')}: its machine or its process is gone")
    if found.complete and found.why is not None:
        lines.append(f"  {found.why}")
    lines += [f"  {line}" for line in retry_lines(found.output, found.by_code)]
    if found.failed and not found.complete:
        lines.append(f"  dead letters: {shown_path(found.output)}/errors/*.parquet")
    if (work := found.work) is not None:
        who = "" if work.host is None else f" (host {work.host}, process {work.pid})"
        doing = "is under way" if work.alive else "was begun and is not finished"
        kind = "a retry" if work.command[0] == "retry" else "a compaction"
        lines.append(f"  {kind} of it {doing}{who}")
    return lines + ([] if found.run is None else _run_lines(found, found.run))


def _run_lines(found: "JobStatus", run: dict[str, Any]) -> list[str]:
    """What the run has last said of itself; speed and end only while it goes on."""
    from magbatch.report.progress import Eta
    from magbatch.report.terminal import shown_eta

    lines = []
    if found.alive:
        serving, starting = (run["replicas"].get(state, 0) for state in ("serving", "starting"))
        lines += [
            f"  {run['rows_per_s']:,.1f} rows/s, {run['tokens_per_s']:,.0f} tokens/s, {run['truncated']:,} truncated, "
            f"{counted(serving, 'replica')} serving, {starting:,} starting",
            f"  ETA {shown_eta(Eta(**run['eta']) if run['eta'] else None)}",
        ]
    if not found.complete:
        lines.append(f"  last sign of life {run['age_s']:,.0f} s ago, from host {run['host']}, process {run['pid']}")
    cost = "" if run["cost"] is None else f", {run['cost']:,.2f} {run['currency']}"
    return [*lines, f"  {run['spent']['device_s'] / 3600:,.2f} device hours so far{cost}"]


def _following(found: "JobStatus", about: Target) -> str:
    """The command that comes next."""
    from magbatch.jobs.status import JobState

    if found.alive or (found.work is not None and found.work.alive):
        return about.again("status")
    if found.work is not None:
        verb, *options = found.work.command
        return command(verb, shown_path(about.output), *options)
    if found.complete:
        place = about.output
        return command("verify", shown_path(place)) if found.why is None else retry_command(place, found.by_code)
    # As it was, a job that ended early would end at once again.
    more = ["limits.max_failed_rows=100%"] if found.state == JobState.ENDED_EARLY else []
    return about.run(*more, started=found.command)


@commands.command()
def verify(output: SpecOrOutput, overrides: SpecOverrides = None, limit: SpecLimit = None, json: Json = False) -> None:
    """Prove an output from its objects alone: every planned row once, checksums as in the manifest."""
    with errors(json):
        from magbatch.errors import OutputError, SpecError
        from magbatch.jobs.status import job_status
        from magbatch.ledger.ledger import Ledger
        from magbatch.ledger.verify import verify as verify_job

        about = target(output, overrides, limit)
        found = verify_job(Ledger(about.output), counting("objects checked"))
        stands = None
        with suppress(OutputError, SpecError):  # a plan or spec that is damaged, as the problems say
            stands = None if found.verified else job_status(about.output)
    where = shown_path(about.output)
    problems = list(found.problems) if found.complete else ["no manifest: the job is not complete", *found.problems]
    if json:
        counts = {name: getattr(found, name) for name in ("planned", "answered", "failed", "objects", "complete")}
        print_json(counts | {"verified": found.verified, "problems": problems})
    elif stands is not None and not found.complete:
        print(f"{where}: not complete: {found.planned - found.open:,} of {counted(found.planned, 'row')} are done")
        if found.problems:
            print(f"  {counted(len(found.problems), 'problem')} in what is there:")
            print("\n".join(f"  {with_prefix(problem)}" for problem in found.problems))
        else:
            print(f"  what is there is right: {counted(found.objects, 'object')}, {found.answered:,} answered, "
                  f"{found.failed:,} failed")  # fmt: skip
        print("  a run works on it now" if stands.alive else f"  the job is not running ({stands.state})")
        print(f"Next: {_following(stands, about)}")
    elif problems:
        print(f"{where}: {counted(len(problems), 'problem')}")
        print("\n".join(f"  {with_prefix(problem)}" for problem in problems))
        _say_remedy(stands, about, run_mends=found.run_mends)
    else:
        letters = counted(found.failed, "dead letter")
        print(f"planned {found.planned:,} = {found.answered:,} answered + {letters}")
        print(f"verified: every row once, in {counted(found.objects, 'object')}, every checksum right")
    for line in () if json else found.notes:
        print(f"  {line}")
    if found.verified and found.failed and not json:
        manifest = Ledger(about.output).manifest()
        print(f"Next: {retry_command(about.output, {} if manifest is None else manifest.totals.by_code)}")
    raise typer.Exit(0 if found.verified else 1)


def _say_remedy(stands: "JobStatus | None", about: Target, *, run_mends: bool) -> None:
    """What mends a complete job, at the least cost."""
    if stands is not None and stands.work is not None and (stands.work.alive or run_mends):
        kind = "a retry" if stands.work.command[0] == "retry" else "a compaction"
        doing = "is under way: verify again when it is over" if stands.work.alive else "was interrupted"
        print(f"  {kind} of it {doing}")
        print(f"Next: {_following(stands, about)}")
    elif run_mends:
        print("  no answer is touched by this; run of a complete job mends it, and asks nothing again")
        print(f"Next: {about.run()}")
    else:
        print("Bring lost objects back (s3:// versions, backups); or run the spec into a new output.path")


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
    output: SpecOrOutput,
    where: Where = None,
    only: Only = None,
    overrides: AskOtherwise = None,
    limit: SpecLimit = None,
    drop: Drop = False,
    json: Json = False,
) -> None:
    """Ask the rows of a complete job that failed again, into the same dataset."""
    with errors(json):
        from dataclasses import asdict

        from magbatch.jobs.retry import Choice
        from magbatch.jobs.retry import drop as drop_retry
        from magbatch.jobs.retry import retry as retry_job

        # With a spec, what is set of output.path says where the job lies; all else is asked otherwise.
        places = [item for item in overrides or [] if item.startswith("output.path=")]
        overrides = [item for item in overrides or [] if item not in places]
        place, choice = target(output, places, limit).output, Choice.of(where or [], only)
        with live_console() as console:
            if drop:
                found = drop_retry(place, console)
            else:
                outcome = retry_job(place, choice, overrides, console)
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
        letters = counted(outcome.whole_files, "dead letter is a whole file", "dead letters are whole files")
        print(f"{letters} that could not be read when the job was planned:")
        print("  no retry reads those; run the mended files as a job of their own")
    if not outcome.rows:
        print(f"{outcome.job}: nothing to retry: there are no {outcome.chosen}")
        return
    again = outcome.rows - outcome.answered
    print(f"{outcome.job}: {counted(outcome.rows, 'row')} retried: {outcome.answered:,} answered, {again:,} as before")
    for kind, count in sorted(outcome.failed.items()):
        print(f"  failed again: {kind} {count:,}")
    if outcome.truncated:
        print(f"  truncated again: {outcome.truncated:,}")
    print(f"  the job now: {counted(outcome.totals.answered, 'row')} answered, {outcome.totals.failed:,} failed")
    if outcome.totals.answered:
        print(f"  results: {shown_path(place)}/results/*.parquet")
    if outcome.totals.failed:
        print(f"  dead letters: {shown_path(place)}/errors/*.parquet")
    if outcome.why is not None:
        print(outcome.why, file=sys.stderr)
    print(f"Next: {command('verify', shown_path(place))}")
    raise typer.Exit(code)


@commands.command()
def compact(
    output: SpecOrOutput,
    target_mb: TargetMb = 256,
    overrides: SpecOverrides = None,
    limit: SpecLimit = None,
    json: Json = False,
) -> None:
    """Merge the many objects of a complete job into a few of a target size."""
    with errors(json):
        from dataclasses import asdict

        from magbatch.jobs.compact import compact as compact_job

        place = target(output, overrides, limit).output
        with live_console() as console:
            outcome = compact_job(place, target_mb * 1_000_000, console)
    if json:
        print_json(asdict(outcome) | {"output": place})
        return
    if not outcome.merged:
        print(f"{outcome.job}: nothing to merge: {counted(outcome.objects, 'object')}, {outcome.bytes / 1e6:,.1f} MB")
        return
    print(f"{outcome.job}: {counted(outcome.objects_before, 'object')} -> {outcome.objects:,}", end=", ")
    print(f"{outcome.bytes_before / 1e6:,.1f} MB -> {outcome.bytes / 1e6:,.1f} MB")
    print(f"  results: {shown_path(place)}/results/*.parquet")
    print(f"Next: {command('verify', shown_path(place))}")
