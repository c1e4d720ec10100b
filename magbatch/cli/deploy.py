"""`deploy render` turns a spec into the files of a platform."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from magbatch.cli.deploy_options import PlatformOptions, with_platform_options
from magbatch.cli.errors import errors
from magbatch.cli.options import Overrides, SpecPath
from magbatch.cli.show import note
from magbatch.cli.show_deploy import print_files, print_written

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Files from which a platform runs a job.")
IMAGE_HELP = (
    "--image: is missing; build an image and push it to your registry: "
    "docker build -f deploy/Dockerfile.gpu -t REGISTRY/magbatch:0.2.0-gpu . && "
    "docker push REGISTRY/magbatch:0.2.0-gpu"
)


class _Grouped(TyperCommand):
    """Command whose help lists its options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                panel = getattr(parameter, "rich_help_panel", None)
                group = panel or ("Options" if parameter.param_type_name == "option" else "Arguments")
                groups.setdefault(group, []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


@commands.callback()
def _deploy() -> None:
    return


@commands.command("render", cls=_Grouped)
@with_platform_options
def deploy_render(
    spec: SpecPath,
    target: Annotated[
        str, typer.Option("--target", metavar="kuberay|raycluster|cron|aws", help="Platform that runs the job.")
    ] = "kuberay",
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Folder for the files. Without it, they are printed.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="Container image built from deploy/Dockerfile.gpu. Required."),
    ] = None,
    overrides: Overrides = None,
    *,
    options: PlatformOptions,
) -> None:
    """Render a spec into Kubernetes manifests or a launcher file. deploy/README.md explains every option."""
    with errors(False):
        from magbatch.deploy import Platform, Target, next_commands, notes, render, write
        from magbatch.errors import SpecError
        from magbatch.spec import load, unchecked

        if target not in list(Target):
            raise SpecError(f"--target {target}: write one of {', '.join(Target)}")
        if image is None:
            raise SpecError(IMAGE_HELP)
        accelerators = options.accelerators()
        for name in accelerators:
            if accelerators.count(name) > 1:
                raise SpecError(f"--accelerator {name}: is given twice; write it once")
        wanted, platform, job = Target(target), Platform(image=image, **options.fields()), load(spec, overrides)
        files = render(job, wanted, platform)
        for text in filter(None, [unchecked(job.model), *notes(job, wanted, platform)]):
            note(f"note: {text}")
        if out is None:
            print_files(files)
            return
        write(files, out)
        following = list(next_commands(job, wanted, platform, out, spec))
    print_written(spec, wanted, out, [*files], following)
