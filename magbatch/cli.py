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
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

import magbatch
from magbatch import guard

if TYPE_CHECKING:
    from magbatch.job.run import Outcome

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
    from magbatch.errors import DefectError, InterruptedJobError, JobError

    before = signal.signal(signal.SIGTERM, guard.interrupt)  # a platform's SIGTERM is as a person's Ctrl-C
    try:
        try:
            yield
        except KeyboardInterrupt as interrupt:
            raise InterruptedJobError(guard.LEFT) from interrupt
        except SystemExit as end:  # by a library: a command's own ends are `typer.Exit`
            defect = DefectError(f"SystemExit: a library ended the command, saying {str(end.code)!r}")
            defect.add_note("".join(traceback.format_exception(end)).rstrip())
            raise defect from end
    except JobError as error:
        guard.tell_starter(str(error))
        if as_json:
            print(
                json_format.dumps({"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code})
            )
        else:
            print(f"magbatch: {error}", *getattr(error, "__notes__", []), sep="\n", file=sys.stderr)
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
    code = _known(too_many_failed=outcome.too_many_failed)
    output = outcome.report["output"]
    if json:
        _print_json(outcome.report | {"already_complete": outcome.already, "results": f"{output}/results/*.parquet"})
    else:
        _print_outcome(outcome)
    raise typer.Exit(code)


def _known(*, too_many_failed: bool) -> int:
    """The exit code of a job that is complete: nothing that happens while this is told changes it."""
    code = 1 if too_many_failed else 0
    guard.announce(code)
    return code


def _print_outcome(outcome: "Outcome") -> None:
    """What a run came to, for a person."""
    output = outcome.report["output"]
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


def _shown_path(output: str) -> str:
    relative = os.path.relpath(output) if not output.startswith("s3://") else output
    return output if relative.startswith("..") else relative


def _output(path: str) -> str:
    return path if path.startswith("s3://") else os.path.abspath(path)


@app.command()
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
    with _errors(json):
        from magbatch.errors import OutputError
        from magbatch.job.status import status as job_status

        if address is None and "/" not in output and not os.path.exists(output):
            address = os.environ.get("RAY_API_SERVER_ADDRESS")  # a name that is no place here is a job's id
        if address is not None:
            from magbatch.cluster import Cluster

            job = Cluster(address).job(output)
            output = job.output
        try:
            found = job_status(_output(output))
        except OutputError:
            if job is None:
                raise
            found = None  # it has not begun yet, or failed before
    if job is not None:
        if json:
            _print_json({"cluster": job.to_dict(), "status": found})
            return
        print(f"{job.id}: {job.state}")
        if found is None:
            for line in job.message.splitlines()[-5:]:
                print(f"  {line}")
            print(f"  no rows yet: {output}")
            print(f"Next: magbatch logs {job.id} --address {address}")
            return
    assert found is not None, "an output that cannot be read has raised"
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


Address = Annotated[
    str,
    typer.Option(
        "--address", envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="The cluster's dashboard, http://head:8265."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, as `submit` and `jobs` show it.")]


@app.command()
def submit(spec: SpecPath, address: Address, overrides: Overrides = None, json: Json = False) -> None:
    """Send a job to a running Ray cluster; it goes on there when this machine is gone."""
    with _errors(json):
        from magbatch.spec import load

        loaded = load(spec, overrides)
        from magbatch.cluster import Cluster, local_paths

        job_id = Cluster(address).submit(loaded)
    _print_submitted(job_id, loaded.name, loaded.output.path, address, local_paths(loaded), json)


def _print_submitted(job_id: str, name: str, output: str, address: str, local: list[str], as_json: bool) -> None:
    if as_json:
        _print_json({"id": job_id, "job": name, "output": output, "address": address})
        return
    print(f"{name}: submitted to {address} as {job_id}")
    print(f"  output: {output}")
    for path in local:
        print(f"  note: {path} must be there, by this path, on every machine of the cluster")
    print(f"Next: magbatch logs -f {job_id} --address {address}")


@app.command()
def jobs(address: Address, json: Json = False) -> None:
    """The jobs of a cluster, the newest first."""
    with _errors(json):
        from magbatch.cluster import Cluster

        found = Cluster(address).jobs()
    if json:
        _print_json([job.to_dict() for job in found])
        return
    width = max((len(job.id) for job in found), default=0)
    for job in found:
        began, ended = (f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "-" for moment in (job.started, job.ended))
        print(f"{job.id:<{width}}  {job.state:<9}  {began} to {ended:<19} (UTC)  {job.output}")
    print(f"{len(found):,} job{'' if len(found) == 1 else 's'} at {address}")
    print(f"Next: magbatch {'status ID' if found else 'submit SPEC'} --address {address}")


@app.command()
def logs(
    job_id: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """What a job of a cluster has printed."""
    with _errors(False):
        from magbatch.cluster import Cluster

        cluster = Cluster(address)
        if follow:
            for text in cluster.follow(job_id):
                print(text, end="", flush=True)
            job = cluster.job(job_id)
            print(f"{job_id}: {job.state}")
            raise typer.Exit(0 if job.state == "succeeded" else job.exit_code or 3)
        print(cluster.logs(job_id), end="")


@app.command()
def cancel(job_id: JobId, address: Address, json: Json = False) -> None:
    """End a job of a cluster; what it has finished is committed first."""
    with _errors(json):
        from rich.console import Console

        from magbatch.cluster import Cluster

        cluster = Cluster(address)
        was_over = cluster.job(job_id).is_over
        with os.fdopen(os.dup(2), "w") as stderr, Console(file=stderr).status("ending") as shown:
            job = cluster.cancel(job_id, lambda waited: shown.update(f"it commits what is finished ({waited:.0f} s)"))
    if json:
        _print_json(job.to_dict() | {"was_over": was_over})
        return
    print(f"{job_id}: {'had ended already: ' if was_over else ''}{job.state}")
    if job.state == "failed":
        print(f"  it had failed by itself; what it had committed stays: {job.output}")
        print(f"Next: magbatch logs {job_id} --address {address}")
        return
    print(f"  what it finished is committed: {job.output}")
    following = f"verify {job.output}" if job.state == "succeeded" else f"resume {job_id} --address {address}"
    print(f"Next: magbatch {following}")


@app.command()
def resume(job_id: JobId, address: Address, json: Json = False) -> None:
    """Submit the spec of a job of a cluster that has ended once more: it goes on where it was."""
    with _errors(json):
        from magbatch.cluster import Cluster

        cluster = Cluster(address)
        new_id = cluster.resume(job_id)
        job = cluster.job(new_id)
    _print_submitted(new_id, job.name, job.output, address, [], json)


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
    code = _known(too_many_failed=outcome.too_many_failed)
    if json:
        _print_json(asdict(outcome) | {"output": place, "results": f"{place}/results/*.parquet"})
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
    print(f"  results: {_shown_path(place)}/results/*.parquet")
    if outcome.too_many_failed:
        print("More rows failed than limits.max_failed_rows allows.", file=sys.stderr)
    print(f"Next: magbatch verify {_shown_path(place)}")
    raise typer.Exit(code)


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


@app.command()
def bench(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="text, tail or image (all arms); occupancy, null, documents, memory, start or prefix; all.",
        ),
    ] = "text",
    rows: Annotated[int | None, typer.Option("--rows", min=1, metavar="N", help="Rows of a suite.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, metavar="N", help="How often each arm runs.")] = None,
    model: Annotated[str, typer.Option("--model", help="As model.source in a spec.")] = "builtin:tiny",
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs of the engine; 0 runs on CPUs.")] = 0,
    engine_args: Annotated[
        list[str] | None,
        typer.Option("--engine-arg", metavar="NAME=VALUE", help="vLLM's own, given to every arm; may be repeated."),
    ] = None,
    arms: Annotated[str | None, typer.Option("--arms", metavar="A,B", help="Only these, such as raw,magbatch.")] = None,
    pin: Annotated[
        bool, typer.Option("--pin/--no-pin", help="On CPUs: the engine on half of the cores, all else on the others.")
    ] = True,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="DIR", help="Keep what the arms read and wrote here.")
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write every run, settings and versions here.")
    ] = None,
) -> None:
    """Measure magbatch on this machine against vLLM by itself and ray.data.llm."""
    with _errors(False):
        from time import monotonic

        from magbatch.bench.run import bench as run_bench

        began = monotonic()

        def say(text: str) -> None:
            minutes, seconds = divmod(round(monotonic() - began), 60)
            print(f"[{minutes:2d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)

        outcome = run_bench(
            suite, rows=rows, rounds=rounds, model=model, gpus=gpus, engine_args=engine_args or [], pin=pin,
            arms=arms, keep=keep, report=json, say=say,
        )  # fmt: skip
    print(outcome.markdown)
    made = sum(target["bound"] is not None for target in outcome.document["targets"])
    print(
        f"\nbench {suite}: {made - outcome.missed} of {made} targets met, in {(monotonic() - began) / 60:.0f} minutes"
    )
    if json is not None:
        print(f"  every run: {json}")
    if keep is not None:
        print(f"  what the arms read and wrote: {keep}")
    print(f"Next: magbatch bench {'all' if suite != 'all' else 'SUITE'} --json bench.json")


deploy = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Files that a platform runs a job from.")
app.add_typer(deploy, name="deploy")


@deploy.callback()
def _deploy() -> None:
    return


@deploy.command("render")
def deploy_render(
    spec: SpecPath,
    target: Annotated[
        str, typer.Option("--target", metavar="kuberay|raycluster|cron|aws", help="What runs it.")
    ] = "kuberay",
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Write the files here; else they are printed.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="Container image, built from deploy/Dockerfile.gpu.")
    ] = None,
    spot: Annotated[
        str | None, typer.Option("--spot", metavar="LABEL=VALUE", help="What spot nodes are labelled with; `none`.")
    ] = None,
    accelerator: Annotated[
        list[str] | None,
        typer.Option(
            "--accelerator", metavar="NAME=LABEL=VALUE", help="What nodes of an accelerator are labelled with."
        ),
    ] = None,
    role: Annotated[
        str | None, typer.Option("--role", help="AWS role of the pods (IRSA); on aws, an instance profile's name.")
    ] = None,
    secret: Annotated[
        str | None, typer.Option("--secret", help="A Secret whose keys become environment variables (HF_TOKEN).")
    ] = None,
    region: Annotated[str | None, typer.Option("--region", help="Of AWS.")] = None,
    overrides: Overrides = None,
) -> None:
    """Render a job spec into Kubernetes manifests or a cluster-launcher file."""
    with _errors(False):
        from magbatch.deploy import Platform, Target, render, write
        from magbatch.errors import SpecError
        from magbatch.spec import load

        if target not in list(Target):
            raise SpecError(f"--target {target}: write one of {', '.join(Target)}")
        given = {"image": image, "role_arn": role, "secret": secret, "region": region, "spot": spot}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if spot == "none":
            chosen["spot"] = None
        chosen["accelerators"] = {name: label for name, _, label in (one.partition("=") for one in accelerator or [])}
        files = render(load(spec, overrides), Target(target), Platform(**chosen))
        if out is None:
            print("---\n".join(f"# {name}\n{text}" for name, text in files.items()), end="")
            return
        write(files, out)
    print(f"{spec}: {len(files)} files for {target} in {out}")
    for name in files:
        print(f"  {name}")
    submit = "magbatch submit /tmp/magbatch/job.yaml --address http://127.0.0.1:8265"
    aws = f"cd {out} && ray up cluster.yaml && ray exec cluster.yaml '{submit}'"
    print(f"Next: {aws if target == Target.AWS else f'kubectl apply -k {out}'}")


schedule = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Jobs that run by themselves.")
app.add_typer(schedule, name="schedule")

SpecFolder = Annotated[str, typer.Argument(metavar="DIR", help="A folder; every *.yaml in it that has a schedule.")]
Once = Annotated[bool, typer.Option("--once", help="Run what is due now, and end.")]
At = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help="The tick, such as 2026-11-24T06:00; left out: the latest by its cron."),
]


@schedule.command("run")
def schedule_run(folder: SpecFolder, once: Once = False, json: Json = False) -> None:
    """Run the jobs of a folder when they are due, until interrupted."""
    with _errors(json):
        from magbatch.schedule.scheduler import Scheduler, spec_files, worst

        spec_files(folder)
        scheduler = Scheduler(folder, lambda text: print(text, file=sys.stderr, flush=True))
        runs, stopped = scheduler.runs, False
        try:
            scheduler.run(once=once)
        except KeyboardInterrupt:
            stopped = True
    code = 0 if stopped else worst(runs)
    if json:
        _print_json({"runs": [*runs], "stopped": stopped, "exit_code": code})
        raise typer.Exit(code)
    well = sum(run["exit_code"] == 0 for run in runs)
    print(f"{folder}: {len(runs):,} runs ended, {well:,} of them well" if runs else f"{folder}: no run ended")
    print(f"Next: magbatch schedule list {folder}")
    raise typer.Exit(code)


@schedule.command("tick")
def schedule_tick(spec: SpecPath, at: At = None, overrides: Overrides = None, json: Json = False) -> None:
    """Run one tick of a schedule now, after those that were begun and are not complete."""
    with _errors(json):
        from rich.console import Console

        from magbatch.schedule.tick import chosen, run_tick
        from magbatch.spec import load

        loaded = load(spec, overrides)
        with os.fdopen(os.dup(2), "w") as stderr:
            outcomes = run_tick(loaded, chosen(loaded, at), Console(file=stderr))
    code = max(one.exit_code for one in outcomes)
    guard.announce(code)
    for one in outcomes:
        if one.error is not None:
            guard.tell_starter(f"the run of {one.tick.isoformat()}: {one.error}")
    if json:
        _print_json({"job": loaded.name, "ticks": [one.to_dict() for one in outcomes]})
        raise typer.Exit(code)
    for one in outcomes:
        if one.error is not None:
            print(f"{loaded.name}: tick {one.tick:%Y-%m-%dT%H:%M:%SZ}: not complete: {one.error}", file=sys.stderr)
            continue
        count = f"{one.files:,} file{'' if one.files == 1 else 's'}"
        said = "no new files" if one.state == "empty" else f"{count} into {_shown_path(one.output)}"
        print(f"{loaded.name}: tick {one.tick:%Y-%m-%dT%H:%M:%SZ}: {said}{', as before' if one.already else ''}")
        if one.outcome is not None:
            _print_outcome(one.outcome)
        elif one.too_many_failed:
            print("More rows failed than limits.max_failed_rows allowed then.", file=sys.stderr)
    if outcomes[-1].outcome is None:
        print(f"Next: magbatch schedule list {os.path.dirname(spec) or '.'}")
    raise typer.Exit(code)


@schedule.command("list")
def schedule_list(folder: SpecFolder, json: Json = False) -> None:
    """Show what the schedules of a folder have done last, and when they run next."""
    with _errors(json):
        from datetime import UTC, datetime

        from magbatch.schedule.scheduler import listing

        rows = listing(folder, datetime.now(UTC))
    if json:
        _print_json(rows)
        return
    for row in rows:
        if "problem" in row:
            print(row["problem"])
            continue
        print(f"{row['job']}: {row['cron']} ({row['timezone']}), {row['runs']:,} ticks so far")
        last = row["last"]
        if last is not None:
            facts = ", ".join(f"{last[name]:,} {name}" for name in ("files", "rows", "failed") if name in last)
            print(f"  last: {last['tick']} {last['state']}{f', {facts}' if facts else ''}")
            print(f"  output: {_shown_path(last['output'])}")
        if row["due"] is not None:
            print(f"  due: {row['due']}")
        print(f"  next: {row['next']}")
    if not rows:
        print(f"{folder}: no spec here has a schedule")
    print(f"Next: magbatch schedule run {folder}")


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
    """Run the command in this process, and end it."""
    code = _exit_code()
    if guard.was_interrupted() and code not in {0, guard.INTERRUPTED}:  # whatever a library made of the interrupt
        guard.leave_interrupted()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads any more
            stream.flush()
    guard.announce(code)
    # Not through the interpreter's teardown: native thread pools can abort there ("terminate called without
    # an active exception", seen after a complete job), and a finished command would end with the wrong code.
    atexit._run_exitfuncs()
    os._exit(code)


def _exit_code() -> int:
    """Run the command; what it ends with is one of the codes above, whatever it raises."""
    try:
        app()
    except SystemExit as end:
        if not isinstance(end.code, int | None):  # what Python itself makes 1 of
            print(end.code, file=sys.stderr)
            return CRASHED
        code = end.code or 0
        return code if 0 <= code <= CRASHED else CRASHED
    except KeyboardInterrupt:
        guard.leave_interrupted()
    except Exception:  # noqa: BLE001 - a defect: its exit code must be none of those that say how a job ended
        if not guard.was_interrupted():
            traceback.print_exc()
        return CRASHED
    return 0
