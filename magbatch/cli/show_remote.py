"""Output of `submit`, `jobs`, `logs`, `cancel` and `resume`: jobs of a Ray cluster."""

from typing import TYPE_CHECKING

from magbatch.cli.command_line import command
from magbatch.cli.show import print_json, say, say_next
from magbatch.counts import counted

if TYPE_CHECKING:
    from magbatch.remote import ClusterJob


def print_submitted(job_id: str, name: str, output: str, address: str, local: list[str], *, as_json: bool) -> None:
    """Print a submitted job.

    Args:
        job_id: Id of the job on the cluster.
        name: Name of the job.
        output: Path or URL of its output.
        address: Address of the cluster.
        local: Local paths of the spec, which every machine of the cluster must have.
        as_json: Whether to print a JSON document.
    """
    if as_json:
        print_json({"id": job_id, "job": name, "output": output, "address": address})
        return
    say(f"{name}: submitted to {address} as {job_id}", f"  output: {output}")
    for path in local:
        say(f"  note: {path} must exist, with this path, on every machine of the cluster")
    say_next(command("logs", "-f", job_id, "--address", address))


def print_jobs(found: "list[ClusterJob]", address: str) -> None:
    """Print the jobs of a cluster, one a line.

    Args:
        found: The jobs, the newest first.
        address: Address of the cluster.
    """
    width = max((len(job.id) for job in found), default=0)
    for job in found:
        began, ended = (f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "-" for moment in (job.started, job.ended))
        say(f"{job.id:<{width}}  {job.state:<9}  {began} to {ended:<19} (UTC)  {job.output}")
    say(f"{counted(len(found), 'job')} at {address}")
    say_next(command(*(["status", "ID"] if found else ["submit", "SPEC"]), "--address", address))


def print_cancelled(job: "ClusterJob", address: str, *, was_over: bool) -> None:
    """Print a job after `cancel`.

    Args:
        job: The job, as it is now.
        address: Address of the cluster.
        was_over: Whether it had ended before the command.
    """
    say(f"{job.id}: {'had ended already: ' if was_over else ''}{job.state}")
    if job.state == "failed":
        say(f"  it failed by itself; committed rows are kept: {job.output}")
        say_next(command("logs", job.id, "--address", address))
        return
    say(f"  finished rows are committed: {job.output}")
    following = ["verify", job.output] if job.state == "succeeded" else ["resume", job.id, "--address", address]
    say_next(command(*following))
