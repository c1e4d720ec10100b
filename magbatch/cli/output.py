"""`status`, `verify`, `retry` and `compact`: commands about a job that has an output."""

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from magbatch.cli.errors import errors, exit_code
from magbatch.cli.options import Json, SpecLimit, SpecOrOutput, SpecOverrides
from magbatch.cli.show import counter, live_console, note, print_json, say
from magbatch.cli.show_changes import print_compact, print_drop, print_retry
from magbatch.cli.show_status import next_command, print_not_begun, print_status
from magbatch.cli.show_verify import print_verification, print_verification_json
from magbatch.cli.target import SPEC_SUFFIXES, Target, target

if TYPE_CHECKING:
    from magbatch.jobs.status import JobStatus
    from magbatch.remote import ClusterJob

commands = typer.Typer()

SpecOutputOrId = Annotated[
    str,
    typer.Argument(
        metavar="SPEC|OUTPUT|ID", help="The job's spec or output.path; with --address, its id on the cluster."
    ),
]
MaybeAddress = Annotated[
    str | None, typer.Option("--address", metavar="URL", help="The cluster's dashboard, http://head:8265.")
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="CODE", help="Retry only dead letters with this error code; may be repeated."),
]
Only = Annotated[
    str | None,
    typer.Option(
        "--only", metavar="truncated", help="Retry rows whose reasoning was truncated, instead of dead letters."
    ),
]
RetryOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Change a field for the retry, such as sampling.max_tokens=8000; may be repeated.",
    ),
]
Drop = Annotated[bool, typer.Option("--drop", help="Drop an unfinished retry and its answers.")]
TargetMb = Annotated[
    int,
    typer.Option("--target-mb", min=1, max=4096, metavar="N", help="Size of an object; needs about 2N MB of memory."),
]


@commands.command()
def status(
    output: SpecOutputOrId,
    address: MaybeAddress = None,
    overrides: SpecOverrides = None,
    limit: SpecLimit = None,
    json: Json = False,
) -> None:
    """Show the state of a job, from its output alone. Works on any machine, during a run and after it."""
    with errors(json):
        is_path = "/" in output or os.path.exists(output) or output.endswith(SPEC_SUFFIXES)
        if address is None and not is_path:
            address = os.environ.get("RAY_API_SERVER_ADDRESS")  # a word that is not a path is a job's id
        if address is not None:
            job = _cluster_job(output, address)
            found, about = _status(job.output, overrides, limit, may_be_new=True)
        else:
            job = None
            found, about = _status(output, overrides, limit)
    if job is not None and json:
        print_json({"cluster": job.to_dict(), "status": None if found is None else found.to_dict()})
    elif job is not None and (found is None or about is None):
        print_not_begun(job, str(address))
    else:
        assert found is not None, "an output without a job raises"
        assert about is not None, "an output without a job raises"
        if json:
            print_json(found.to_dict() | {"next": next_command(found, about)})
            return
        if job is not None:
            say(f"{job.id}: {job.state}")
        print_status(found, about)


def _cluster_job(job_id: str, address: str) -> "ClusterJob":
    from magbatch.remote import Cluster

    return Cluster(address, note).job(job_id)


def _status(
    output: str, overrides: list[str] | None, limit: int | None, *, may_be_new: bool = False
) -> "tuple[JobStatus | None, Target | None]":
    """Status and target of a job.

    Args:
        output: Spec or output of the job.
        overrides: Values of `--set`.
        limit: Value of `--limit`.
        may_be_new: Whether the output may lack a job; then both are None.
    """
    from magbatch.errors import OutputError
    from magbatch.jobs.status import status as job_status

    try:
        about = target(output, overrides, limit)
        return job_status(about.output), about
    except OutputError:
        if not may_be_new:
            raise
        return None, None


@commands.command()
def verify(output: SpecOrOutput, overrides: SpecOverrides = None, limit: SpecLimit = None, json: Json = False) -> None:
    """Prove an output from its objects alone: each planned row exists exactly once, and each checksum is right."""
    with errors(json):
        from magbatch.errors import OutputError, SpecError
        from magbatch.jobs.status import status as job_status
        from magbatch.ledger.ledger import Ledger
        from magbatch.ledger.verify import verify as verify_job

        about = target(output, overrides, limit)
        found = verify_job(Ledger(about.output), counter("objects checked"))
        state = None
        with suppress(OutputError, SpecError):  # a damaged plan or spec is among the problems already
            state = None if found.verified else job_status(about.output)
        manifest = Ledger(about.output).manifest() if found.verified and found.failed else None
    if json:
        print_verification_json(found)
    else:
        print_verification(found, about, state, {} if manifest is None else manifest.totals.by_code)
    raise typer.Exit(0 if found.verified else 1)


@commands.command()
def retry(
    output: SpecOrOutput,
    where: Where = None,
    only: Only = None,
    overrides: RetryOverrides = None,
    limit: SpecLimit = None,
    drop: Drop = False,
    json: Json = False,
) -> None:
    """Ask failed rows of a complete job again. New answers join the same dataset."""
    with errors(json):
        from dataclasses import asdict

        from magbatch.jobs.choice import Choice
        from magbatch.jobs.retry import drop as drop_retry
        from magbatch.jobs.retry import retry as retry_job
        from magbatch.ledger.layout import results_glob

        # With a spec, output.path names the job's output. Every other field changes how rows are asked.
        paths = [item for item in overrides or [] if item.startswith("output.path=")]
        overrides = [item for item in overrides or [] if item not in paths]
        path, choice = target(output, paths, limit).output, Choice.of(where or [], only)
        with live_console() as console:
            if drop:
                dropped = drop_retry(path, console)
            else:
                outcome = retry_job(path, choice, overrides, console)
    if drop:
        if json:
            print_json({"dropped": dropped})
        else:
            print_drop(path, dropped=dropped)
        return
    code = exit_code(too_many_failed=outcome.too_many_failed)
    if json:
        print_json(asdict(outcome) | {"output": path, "results": results_glob(path)})
    else:
        print_retry(outcome, path)
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

        path = target(output, overrides, limit).output
        with live_console() as console:
            outcome = compact_job(path, target_mb * 1_000_000, console)
    if json:
        print_json(asdict(outcome) | {"output": path})
    else:
        print_compact(outcome, path)
