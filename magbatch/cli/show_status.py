"""Output of `status`: the state of a job, and the command to run next."""

from typing import TYPE_CHECKING

from magbatch.cli.command_line import command, shown_path
from magbatch.cli.retry_hints import retry_command, retry_lines
from magbatch.cli.show import say, say_indented, say_next
from magbatch.counts import counted, shown_time

if TYPE_CHECKING:
    from magbatch.cli.target import Target
    from magbatch.jobs.status import JobStatus, LastRun, Work
    from magbatch.remote import ClusterJob


def print_status(found: "JobStatus", about: "Target") -> None:
    """Print the state of a job for a person.

    Args:
        found: State of the job.
        about: The job, as the user named it.
    """
    share = f"{100 * found.done / found.planned:.1f}%" if found.planned else "100%"
    say(f"{found.job}: {found.state}, {found.done:,} of {counted(found.planned, 'row')} done ({share})")
    say_indented(_details(found))
    say_next(next_command(found, about))


def print_not_begun(job: "ClusterJob", address: str) -> None:
    """Print a job of a cluster whose output does not exist yet.

    Args:
        job: The job, as the cluster knows it.
        address: Address of the cluster.
    """
    say(f"{job.id}: {job.state}")
    say_indented(job.message.splitlines()[-5:])
    say(f"  no rows yet: {job.output}")
    say_next(command("logs", job.id, "--address", address))


def next_command(found: "JobStatus", about: "Target") -> str:
    """The command to run next for a job.

    Args:
        found: State of the job.
        about: The job, as the user named it.
    """
    from magbatch.jobs.status import JobState

    if found.alive or (found.work is not None and found.work.alive):
        return about.again("status")
    if found.work is not None:
        verb, *options = found.work.command
        return command(verb, shown_path(about.output), *options)
    if found.complete:
        output = about.output
        return command("verify", shown_path(output)) if found.why is None else retry_command(output, found.by_code)
    # With the same limit, a job that ended early would end early again.
    more = ["limits.max_failed_rows=100%"] if found.state == JobState.ENDED_EARLY else []
    return about.run(*more, started=found.command)


def work_name(work: "Work") -> str:
    """Noun for a retry or a compaction."""
    return "a retry" if work.command[0] == "retry" else "a compaction"


def _details(found: "JobStatus") -> list[str]:
    """Lines below the heading."""
    from magbatch.ledger.layout import errors_glob

    lines = [
        f"{found.answered:,} answered, {found.failed:,} failed",
        f"{found.shards_done:,} of {counted(found.shards, 'shard')} done",
        *_end(found),
    ]
    if found.complete and found.why is not None:
        lines.append(found.why)
    lines += retry_lines(found.output, found.by_code)
    if found.failed and not found.complete:
        lines.append(f"dead letters: {errors_glob(shown_path(found.output))}")
    if (work := found.work) is not None:
        where = "" if work.host is None else f" (host {work.host}, process {work.pid})"
        state = "is under way" if work.alive else "is unfinished"
        lines.append(f"{work_name(work)} of it {state}{where}")
    return lines + ([] if found.run is None else _run_lines(found, found.run))


def _end(found: "JobStatus") -> list[str]:
    """A line about the end of the last run; empty if the run is under way or the job is complete."""
    from magbatch.jobs.status import JobState

    when = "at an unknown time" if found.at is None else f"at {shown_time(found.at)}"
    since = "an unknown time" if found.at is None else shown_time(found.at)
    why = (found.why or "").splitlines()[:1]
    code = f", with exit code {found.exit_code}" if found.exit_code else ""
    match found.state:
        case JobState.ENDED_EARLY | JobState.FAILED:
            return [f"{found.state} {when}{code}: {''.join(why)}"]
        case JobState.INTERRUPTED:
            return [f"interrupted {when}{code}; committed rows are kept"]
        case JobState.KILLED:
            return [f"process of the run: gone from this machine, without a recorded reason; last heartbeat {when}"]
        case JobState.LOST:
            return [f"no heartbeat since {since}: the machine or the process of the run is gone"]
    return []


def _run_lines(found: "JobStatus", run: "LastRun") -> list[str]:
    """Last record of the run; rates and ETA only while the run is under way."""
    from magbatch.report.terminal import shown_eta

    lines = []
    if found.alive:
        lines += [
            f"{run.rows_per_s:,.1f} rows/s, {run.tokens_per_s:,.0f} tokens/s, {run.truncated:,} truncated, "
            f"{counted(run.serving, 'replica')} serving, {run.starting:,} starting",
            f"ETA {shown_eta(run.eta)}",
        ]
    if not found.complete:
        lines.append(f"last heartbeat {run.age_s:,.0f} s ago, from host {run.host}, process {run.pid}")
    cost = "" if run.cost is None else f", {run.cost:,.2f} {run.currency}"
    return [*lines, f"{run.device_s / 3600:,.2f} device hours so far{cost}"]
