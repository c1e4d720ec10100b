"""Output of `verify`: the proof, or each problem and the cheapest command that repairs it."""

from typing import TYPE_CHECKING

from magbatch.cli.command_line import command, shown_path, with_prefix
from magbatch.cli.retry_hints import retry_command
from magbatch.cli.show import print_json, say, say_indented, say_next
from magbatch.cli.show_status import next_command, work_name
from magbatch.counts import counted

if TYPE_CHECKING:
    from magbatch.cli.target import Target
    from magbatch.jobs.status import JobStatus
    from magbatch.ledger.verify import Verification


FEW_OBJECTS = 2  # one object each in results/ and errors/: nothing to merge


def print_verification(
    found: "Verification", about: "Target", status: "JobStatus | None", by_code: dict[str, int]
) -> None:
    """Print the result of a verification for a person.

    Args:
        found: The result.
        about: The job, as the user named it.
        status: State of the job if the verification failed; None if it succeeded or the state cannot be read.
        by_code: Error code to number of dead letters, of a job that is verified.
    """
    from magbatch.ledger.layout import results_glob

    where, problems = shown_path(about.output), _problems(found)
    if status is not None and not found.complete:
        _print_open(found, about, status)
    elif problems:
        say(f"{where}: {counted(len(problems), 'problem')}")
        say_indented(map(with_prefix, problems))
        _print_remedy(status, about, run_mends=found.run_mends)
    else:
        dead_letters = counted(found.failed, "dead letter")
        say(
            f"planned {found.planned:,} = {found.answered:,} answered + {dead_letters}",
            f"verified: every row once, in {counted(found.objects, 'object')}, every checksum right",
        )
    say_indented(found.notes)
    if found.verified and found.failed:
        say_next(retry_command(about.output, by_code))
    elif found.verified:
        say(f"  results: {results_glob(where)}")
        if found.objects > FEW_OBJECTS:
            say_next(command("compact", where))


def print_verification_json(found: "Verification") -> None:
    """Print the result of a verification for a program."""
    counts = {name: getattr(found, name) for name in ("planned", "answered", "failed", "objects", "complete")}
    print_json(counts | {"verified": found.verified, "problems": _problems(found)})


def _problems(found: "Verification") -> list[str]:
    missing = [] if found.complete else ["no manifest: the job is not complete"]
    return [*missing, *found.problems]


def _print_open(found: "Verification", about: "Target", status: "JobStatus") -> None:
    """Print the result for a job that is not complete."""
    done = found.planned - found.open
    say(f"{shown_path(about.output)}: not complete: {done:,} of {counted(found.planned, 'row')} are done")
    if found.problems:
        say(f"  {counted(len(found.problems), 'problem')} in the objects so far:")
        say_indented(map(with_prefix, found.problems))
    else:
        say(
            f"  no problem in the objects so far: {counted(found.objects, 'object')}, {found.answered:,} answered, "
            f"{found.failed:,} failed"
        )
    say("  a run works on it now" if status.alive else f"  the job is not running ({status.state})")
    say_next(next_command(status, about))


def _print_remedy(status: "JobStatus | None", about: "Target", *, run_mends: bool) -> None:
    """Print how to mend a complete job at the least cost.

    Args:
        status: State of the job; None if it cannot be read.
        about: The job, as the user named it.
        run_mends: Whether `run` mends all problems, because no row is affected.
    """
    work = None if status is None else status.work
    if status is not None and work is not None and (work.alive or run_mends):
        doing = "is under way: verify again when it has ended" if work.alive else "was interrupted"
        say(f"  {work_name(work)} of it {doing}")
        say_next(next_command(status, about))
    elif run_mends:
        say("  no answer is affected; a run of the complete job repairs the output and asks no row again")
        say_next(about.run())
    else:
        say("Restore lost objects (s3:// versions, backups), or run the spec with a new output.path")
