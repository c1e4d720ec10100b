"""`submit`, `jobs`, `logs`, `cancel` and `resume`: the jobs of a running Ray cluster."""

from typing import Annotated

import typer

from magbatch.cli.options import Address, Json, Overrides, SpecPath
from magbatch.cli.show import command, errors, live_console, note, print_json
from magbatch.counts import counted

commands = typer.Typer()

JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, as `submit` and `jobs` show it.")]


@commands.command()
def submit(spec: SpecPath, address: Address, overrides: Overrides = None, json: Json = False) -> None:
    """Send a job to a running Ray cluster; it goes on there when this machine is gone."""
    with errors(json):
        from magbatch.spec import load, unchecked

        loaded = load(spec, overrides)
        from magbatch.remote import Cluster, local_paths

        job_id = Cluster(address, note).submit(loaded)
    if (text := unchecked(loaded.model)) is not None:
        note(f"note: {text}")
    _print_submitted(job_id, loaded.name, loaded.output.path, address, local_paths(loaded), json)


def _print_submitted(job_id: str, name: str, output: str, address: str, local: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"id": job_id, "job": name, "output": output, "address": address})
        return
    print(f"{name}: submitted to {address} as {job_id}")
    print(f"  output: {output}")
    for path in local:
        print(f"  note: {path} must be there, by this path, on every machine of the cluster")
    print(f"Next: {command('logs', '-f', job_id, '--address', address)}")


@commands.command()
def jobs(address: Address, json: Json = False) -> None:
    """The jobs of a cluster, the newest first."""
    with errors(json):
        from magbatch.remote import Cluster

        found = Cluster(address, note).jobs()
    if json:
        print_json([job.to_dict() for job in found])
        return
    width = max((len(job.id) for job in found), default=0)
    for job in found:
        began, ended = (f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "-" for moment in (job.started, job.ended))
        print(f"{job.id:<{width}}  {job.state:<9}  {began} to {ended:<19} (UTC)  {job.output}")
    print(f"{counted(len(found), 'job')} at {address}")
    print(f"Next: {command(*(['status', 'ID'] if found else ['submit', 'SPEC']), '--address', address)}")


@commands.command()
def logs(
    job_id: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """What a job of a cluster has printed."""
    with errors(False):
        from magbatch.remote import Cluster

        cluster = Cluster(address, note)
        if follow:
            for text in cluster.follow(job_id):
                print(text, end="", flush=True)
            job = cluster.job(job_id)
            print(f"{job_id}: {job.state}")
            raise typer.Exit(0 if job.state == "succeeded" else job.exit_code or 3)
        print(cluster.logs(job_id), end="")


@commands.command()
def cancel(job_id: JobId, address: Address, json: Json = False) -> None:
    """End a job of a cluster; what it has finished is committed first."""
    with errors(json):
        from magbatch.remote import Cluster

        cluster = Cluster(address, note)
        was_over = cluster.job(job_id).is_over
        with live_console() as console, console.status("ending") as shown:
            job = cluster.cancel(job_id, lambda waited: shown.update(f"it commits what is finished ({waited:.0f} s)"))
    if json:
        print_json(job.to_dict() | {"was_over": was_over})
        return
    print(f"{job_id}: {'had ended already: ' if was_over else ''}{job.state}")
    if job.state == "failed":
        print(f"  it had failed by itself; what it had committed stays: {job.output}")
        print(f"Next: {command('logs', job_id, '--address', address)}")
        return
    print(f"  what it finished is committed: {job.output}")
    following = ["verify", job.output] if job.state == "succeeded" else ["resume", job_id, "--address", address]
    print(f"Next: {command(*following)}")


@commands.command()
def resume(job_id: JobId, address: Address, json: Json = False) -> None:
    """Submit the spec of a job of a cluster that has ended once more: it goes on where it was."""
    with errors(json):
        from magbatch.remote import Cluster

        cluster = Cluster(address, note)
        new_id = cluster.resume(job_id)
        job = cluster.job(new_id)
    _print_submitted(new_id, job.name, job.output, address, [], json)
