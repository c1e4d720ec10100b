"""`deploy render` turns a spec into the files of a platform."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

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
NODES, PODS, KUBERNETES, AWS = "Nodes", "Pods", "Kubernetes", "AWS (--target aws)"


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


def _option(name: str, group: str, help: str, metavar: str | None = None, least: int | None = None) -> Any:
    return typer.Option(name, rich_help_panel=group, help=help, metavar=metavar, min=least)


@commands.command("render", cls=_Grouped)
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
    gpu_memory_gb: Annotated[
        int | None, _option("--gpu-memory-gb", NODES, "Minimum memory of each GPU.", "GB", 1)
    ] = None,
    accelerator: Annotated[
        list[str] | None,
        _option("--accelerator", NODES, "GPU type, by Ray's name, and the label of its nodes.", "NAME[=LABEL=VALUE]"),
    ] = None,
    spot: Annotated[
        str | None, _option("--spot", NODES, "Label of spot nodes; `none` for no spot nodes.", "LABEL=VALUE")
    ] = None,
    zone: Annotated[str | None, _option("--zone", NODES, "Availability zone of all pods or machines.", "ZONE")] = None,
    cache_size: Annotated[
        str | None, _option("--cache-size", NODES, "Size of the volume for model files (100Gi).", "SIZE")
    ] = None,
    scratch_size: Annotated[
        str | None,
        _option("--scratch-size", NODES, "Size of the disk for spilled objects, logs and /tmp (50Gi).", "SIZE"),
    ] = None,
    storage_class: Annotated[
        str | None,
        _option("--storage-class", PODS, "Class of the volume that holds the model. Without it, the node's disk does."),
    ] = None,
    worker_cpu: Annotated[str | None, _option("--worker-cpu", PODS, "CPUs of a worker.", "CPUS")] = None,
    worker_memory: Annotated[
        str | None, _option("--worker-memory", PODS, "Memory of a worker (64Gi for each GPU).", "SIZE")
    ] = None,
    head_cpu: Annotated[str | None, _option("--head-cpu", PODS, "CPUs of the head (4).", "CPUS")] = None,
    head_memory: Annotated[str | None, _option("--head-memory", PODS, "Memory of the head (16Gi).", "SIZE")] = None,
    role: Annotated[str | None, _option("--role", PODS, "AWS role of the pods (IRSA).", "ARN")] = None,
    secret: Annotated[
        str | None, _option("--secret", PODS, "Secret whose keys become environment variables (HF_TOKEN).", "NAME")
    ] = None,
    image_pull_secret: Annotated[
        list[str] | None,
        _option("--image-pull-secret", PODS, "Secret with the credentials of the image's registry.", "NAME"),
    ] = None,
    priority_class: Annotated[
        str | None, _option("--priority-class", PODS, "PriorityClass of all pods.", "NAME")
    ] = None,
    namespace: Annotated[
        str | None, _option("--namespace", KUBERNETES, "Namespace of all rendered objects.", "NAME")
    ] = None,
    queue: Annotated[str | None, _option("--queue", KUBERNETES, "Kueue's LocalQueue.", "NAME")] = None,
    deadline_seconds: Annotated[
        int | None, _option("--deadline-seconds", KUBERNETES, "Seconds after which KubeRay ends the job.", "N", 1)
    ] = None,
    keep_cluster_seconds: Annotated[
        int | None,
        _option("--keep-cluster-seconds", KUBERNETES, "Seconds that the cluster stays after its job (300).", "N", 0),
    ] = None,
    operator_namespace: Annotated[
        str | None,
        _option("--operator-namespace", KUBERNETES, "Namespace of KubeRay's operator (kuberay-operator).", "NAME"),
    ] = None,
    monitoring_namespace: Annotated[
        str | None, _option("--monitoring-namespace", KUBERNETES, "Namespace of Prometheus (monitoring).", "NAME")
    ] = None,
    allow_egress: Annotated[
        list[str] | None,
        _option("--allow-egress", KUBERNETES, "Link-local addresses that pods may reach; may be repeated.", "CIDR"),
    ] = None,
    region: Annotated[str | None, _option("--region", AWS, "Region (us-east-1).", "REGION")] = None,
    instance_profile: Annotated[
        str | None, _option("--instance-profile", AWS, "Instance profile of the machines.", "NAME|ARN")
    ] = None,
    head_instance_profile: Annotated[
        str | None, _option("--head-instance-profile", AWS, "Instance profile of the head, if it differs.", "NAME|ARN")
    ] = None,
    security_group: Annotated[
        str | None,
        _option("--security-group", AWS, "Security group of all machines. Without it, Ray creates one.", "ID"),
    ] = None,
) -> None:
    """Render a spec into Kubernetes manifests or a launcher file. deploy/README.md explains every option."""
    accelerators = [item.partition("=") for item in accelerator or []]
    given = {
        "gpu_memory_gb": gpu_memory_gb,
        "zone": zone,
        "cache_size": cache_size,
        "scratch_size": scratch_size,
        "storage_class": storage_class,
        "worker_cpu": worker_cpu,
        "worker_memory": worker_memory,
        "head_cpu": head_cpu,
        "head_memory": head_memory,
        "role": role,
        "secret": secret,
        "image_pull_secrets": tuple(image_pull_secret or ()),
        "priority_class": priority_class,
        "namespace": namespace,
        "queue": queue,
        "deadline_s": deadline_seconds,
        "keep_cluster_s": keep_cluster_seconds,
        "operator_namespace": operator_namespace,
        "monitoring_namespace": monitoring_namespace,
        "allow_egress": tuple(allow_egress or ()),
        "region": region,
        "instance_profile": instance_profile,
        "head_instance_profile": head_instance_profile,
        "security_group": security_group,
        "accelerators": {name: label for name, _, label in accelerators},
    }
    _render(
        spec,
        overrides,
        target,
        out,
        image,
        spot,
        [name for name, _, _ in accelerators],
        {name: value for name, value in given.items() if value not in (None, (), {})},
    )


def _render(
    path: str,
    overrides: list[str] | None,
    wanted: str,
    out: str | None,
    image: str | None,
    spot: str | None,
    accelerators: list[str],
    options: dict[str, Any],
) -> None:
    """Render, then print the files or write them.

    Args:
        path: File of the spec.
        overrides: Values of `--set`.
        wanted: Value of `--target`.
        out: Value of `--out`.
        image: Value of `--image`.
        spot: Value of `--spot`.
        accelerators: Names in `--accelerator`.
        options: Other fields of `deploy.Platform`.
    """
    with errors(False):
        from magbatch.deploy import Platform, Target, next_commands, notes, render, write
        from magbatch.errors import SpecError
        from magbatch.spec import load, unchecked

        if wanted not in list(Target):
            raise SpecError(f"--target {wanted}: write one of {', '.join(Target)}")
        if image is None:
            raise SpecError(IMAGE_HELP)
        for name in accelerators:
            if accelerators.count(name) > 1:
                raise SpecError(f"--accelerator {name}: is given twice; write it once")
        if spot is not None:
            options["spot"] = None if spot == "none" else spot
        target, platform, spec = Target(wanted), Platform(image=image, **options), load(path, overrides)
        files = render(spec, target, platform)
        for text in filter(None, [unchecked(spec.model), *notes(spec, target, platform)]):
            note(f"note: {text}")
        if out is None:
            print_files(files)
            return
        write(files, out)
        following = list(next_commands(spec, target, platform, out, path))
    print_written(path, target, out, [*files], following)
