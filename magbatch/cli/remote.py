"""`submit`, `jobs`, `logs`, `cancel` and `resume`: commands about the jobs of a running Ray cluster."""

from typing import Annotated

import typer

from magbatch.cli.errors import errors
from magbatch.cli.options import Address, Json, Overrides, SpecPath
from magbatch.cli.show import live_console, note, print_json, print_text, say
from magbatch.cli.show_remote import print_cancelled, print_jobs, print_submitted

commands = typer.Typer()

JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, as `submit` and `jobs` show it.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Follow the log until the job ends.")]


@commands.command()
def submit(spec: SpecPath, address: Address, overrides: Overrides = None, json: Json = False) -> None:
    """Send a job to a running Ray cluster. The job keeps running if this machine is switched off."""
    with errors(json):
        from magbatch.spec import load, unchecked

        loaded = load(spec, overrides)
        from magbatch.remote import Cluster, local_paths

        job_id = Cluster(address, note).submit(loaded)
    if (text := unchecked(loaded.model)) is not None:
        note(f"note: {text}")
    print_submitted(job_id, loaded.name, loaded.output.path, address, local_paths(loaded), as_json=json)


@commands.command()
def jobs(address: Address, json: Json = False) -> None:
    """List the jobs of a cluster, the newest first."""
    with errors(json):
        from magbatch.remote import Cluster

        found = Cluster(address, note).jobs()
    if json:
        print_json([job.to_dict() for job in found])
    else:
        print_jobs(found, address)


@commands.command()
def logs(job_id: JobId, address: Address, follow: Follow = False) -> None:
    """Show what a job of a cluster has printed."""
    with errors(False):
        from magbatch.remote import Cluster

        cluster = Cluster(address, note)
        if follow:
            for text in cluster.follow(job_id):
                print_text(text, flush=True)
            job = cluster.job(job_id)
            say(f"{job_id}: {job.state}")
            raise typer.Exit(0 if job.state == "succeeded" else job.exit_code or 3)
        print_text(cluster.logs(job_id))


@commands.command()
def cancel(job_id: JobId, address: Address, json: Json = False) -> None:
    """End a job of a cluster. Finished rows are committed first."""
    with errors(json):
        from magbatch.remote import Cluster

        cluster = Cluster(address, note)
        was_over = cluster.job(job_id).is_over
        with live_console() as console, console.status("ending the job") as shown:
            job = cluster.cancel(job_id, lambda waited: shown.update(f"committing finished rows ({waited:.0f} s)"))
    if json:
        print_json(job.to_dict() | {"was_over": was_over})
    else:
        print_cancelled(job, address, was_over=was_over)


@commands.command()
def resume(job_id: JobId, address: Address, json: Json = False) -> None:
    """Submit the spec of an ended job again. The new job answers the rows that are still open."""
    with errors(json):
        from magbatch.remote import Cluster

        cluster = Cluster(address, note)
        new_id = cluster.resume(job_id)
        job = cluster.job(new_id)
    print_submitted(new_id, job.name, job.output, address, [], as_json=json)
