"""`deploy render`: a spec as the files of a platform."""

import sys
from typing import Annotated, Any

import typer

from magbatch.cli.options import Overrides, SpecPath
from magbatch.cli.show import errors

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Files that a platform runs a job from.")


@commands.callback()
def _deploy() -> None:
    return


@commands.command("render")
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
    with errors(False):
        from magbatch.deploy import Platform, Target, render, write
        from magbatch.errors import SpecError
        from magbatch.spec import load, unchecked

        if target not in list(Target):
            raise SpecError(f"--target {target}: write one of {', '.join(Target)}")
        given = {"image": image, "role_arn": role, "secret": secret, "region": region, "spot": spot}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if spot == "none":
            chosen["spot"] = None
        chosen["accelerators"] = {name: label for name, _, label in (one.partition("=") for one in accelerator or [])}
        loaded = load(spec, overrides)
        files = render(loaded, Target(target), Platform(**chosen))
        if (note := unchecked(loaded.model)) is not None:
            print(f"note: {note}", file=sys.stderr)
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
