"""`deploy render`: a spec as the files of a platform."""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from magbatch.cli.options import Overrides, SpecPath
from magbatch.cli.show import errors
from magbatch.counts import counted

commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Files that a platform runs a job from.")
IMAGE_HELP = (
    "--image: is missing; build one and push it to a registry of yours: "
    "docker build -f deploy/Dockerfile.gpu -t REGISTRY/magbatch:0.2.0-gpu . && "
    "docker push REGISTRY/magbatch:0.2.0-gpu"
)
NODES, PODS, KUBERNETES, AWS = "Nodes", "Pods", "Kubernetes", "AWS (--target aws)"


class _Grouped(TyperCommand):
    """A command whose help shows its options group by group."""

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
        str, typer.Option("--target", metavar="kuberay|raycluster|cron|aws", help="What runs it.")
    ] = "kuberay",
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Write the files here; else they are printed.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="Container image, of deploy/Dockerfile.gpu. Required."),
    ] = None,
    overrides: Overrides = None,
    gpu_memory_gb: Annotated[
        int | None, _option("--gpu-memory-gb", NODES, "Least memory of each GPU.", "GB", 1)
    ] = None,
    accelerator: Annotated[
        list[str] | None,
        _option("--accelerator", NODES, "The GPU, as Ray names it, and its nodes' label.", "NAME[=LABEL=VALUE]"),
    ] = None,
    spot: Annotated[str | None, _option("--spot", NODES, "Label of spot nodes; `none`.", "LABEL=VALUE")] = None,
    zone: Annotated[str | None, _option("--zone", NODES, "Availability zone of all pods or machines.", "ZONE")] = None,
    cache_size: Annotated[
        str | None, _option("--cache-size", NODES, "Volume of the model's files (100Gi).", "SIZE")
    ] = None,
    scratch_size: Annotated[
        str | None, _option("--scratch-size", NODES, "Disk for spilled objects, logs and /tmp (50Gi).", "SIZE")
    ] = None,
    storage_class: Annotated[
        str | None, _option("--storage-class", PODS, "A volume of this class holds the model; else the node's disk.")
    ] = None,
    worker_cpu: Annotated[str | None, _option("--worker-cpu", PODS, "CPUs of a worker.", "CPUS")] = None,
    worker_memory: Annotated[
        str | None, _option("--worker-memory", PODS, "Memory of a worker (64Gi for each GPU).", "SIZE")
    ] = None,
    head_cpu: Annotated[str | None, _option("--head-cpu", PODS, "CPUs of the head (4).", "CPUS")] = None,
    head_memory: Annotated[str | None, _option("--head-memory", PODS, "Memory of the head (16Gi).", "SIZE")] = None,
    role: Annotated[str | None, _option("--role", PODS, "AWS role of the pods (IRSA).", "ARN")] = None,
    secret: Annotated[
        str | None, _option("--secret", PODS, "A Secret whose keys become environment variables (HF_TOKEN).", "NAME")
    ] = None,
    image_pull_secret: Annotated[
        list[str] | None, _option("--image-pull-secret", PODS, "A Secret that opens the image's registry.", "NAME")
    ] = None,
    priority_class: Annotated[
        str | None, _option("--priority-class", PODS, "PriorityClass of all pods.", "NAME")
    ] = None,
    namespace: Annotated[
        str | None, _option("--namespace", KUBERNETES, "Namespace of everything that is rendered.", "NAME")
    ] = None,
    queue: Annotated[str | None, _option("--queue", KUBERNETES, "Kueue's LocalQueue.", "NAME")] = None,
    deadline_seconds: Annotated[
        int | None, _option("--deadline-seconds", KUBERNETES, "KubeRay ends the job after so long.", "N", 1)
    ] = None,
    keep_cluster_seconds: Annotated[
        int | None,
        _option("--keep-cluster-seconds", KUBERNETES, "How long the cluster outlives its job (300).", "N", 0),
    ] = None,
    operator_namespace: Annotated[
        str | None,
        _option("--operator-namespace", KUBERNETES, "Where KubeRay's operator runs (kuberay-operator).", "NAME"),
    ] = None,
    monitoring_namespace: Annotated[
        str | None, _option("--monitoring-namespace", KUBERNETES, "Where Prometheus runs (monitoring).", "NAME")
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
        str | None, _option("--head-instance-profile", AWS, "That of the head, if it is another.", "NAME|ARN")
    ] = None,
    security_group: Annotated[
        str | None, _option("--security-group", AWS, "Security group of all machines; else Ray makes one.", "ID")
    ] = None,
) -> None:
    """Render a job spec into Kubernetes manifests or a launcher file. deploy/README.md explains every option."""
    accelerators = [one.partition("=") for one in accelerator or []]
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
        for note in filter(None, [unchecked(spec.model), *notes(spec, target, platform)]):
            print(f"note: {note}", file=sys.stderr)
        if out is None:
            print("---\n".join(f"# {name}\n{text}" for name, text in files.items()), end="")
            return
        write(files, out)
    print(f"{path}: {counted(len(files), 'file')} for {target} in {out}")
    for name in files:
        print(f"  {name}")
    for command in next_commands(spec, target, platform, out, path):
        print(f"Next: {command}")
