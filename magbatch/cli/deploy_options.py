"""The platform's options of `deploy render`: a record for each group in the help.

The fields are named as those of `deploy.Platform`; an option that is not given is None, so `Platform` decides.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

NODES, PODS, KUBERNETES, AWS = "Nodes", "Pods", "Kubernetes", "AWS (--target aws)"  # groups in the help


def _option(name: str, group: str, help: str, metavar: str | None = None, least: int | None = None) -> Any:
    return typer.Option(name, rich_help_panel=group, help=help, metavar=metavar, min=least)


@dataclass(frozen=True, slots=True)
class Nodes:
    """Options of every target."""

    gpu_memory_gb: Annotated[int | None, _option("--gpu-memory-gb", NODES, "Minimum memory of each GPU.", "GB", 1)] = (
        None
    )
    accelerators: Annotated[
        list[str] | None,
        _option("--accelerator", NODES, "GPU type, by Ray's name, and the label of its nodes.", "NAME[=LABEL=VALUE]"),
    ] = None
    spot: Annotated[
        str | None, _option("--spot", NODES, "Label of spot nodes; `none` for no spot nodes.", "LABEL=VALUE")
    ] = None
    zone: Annotated[str | None, _option("--zone", NODES, "Availability zone of all pods or machines.", "ZONE")] = None
    cache_size: Annotated[
        str | None, _option("--cache-size", NODES, "Size of the volume for model files (100Gi).", "SIZE")
    ] = None
    scratch_size: Annotated[
        str | None,
        _option("--scratch-size", NODES, "Size of the disk for spilled objects, logs and /tmp (50Gi).", "SIZE"),
    ] = None


@dataclass(frozen=True, slots=True)
class Pods:
    """Options of targets with pods."""

    storage_class: Annotated[
        str | None,
        _option("--storage-class", PODS, "Class of the volume that holds the model. Without it, the node's disk does."),
    ] = None
    worker_cpu: Annotated[str | None, _option("--worker-cpu", PODS, "CPUs of a worker.", "CPUS")] = None
    worker_memory: Annotated[
        str | None, _option("--worker-memory", PODS, "Memory of a worker (64Gi for each GPU).", "SIZE")
    ] = None
    head_cpu: Annotated[str | None, _option("--head-cpu", PODS, "CPUs of the head (4).", "CPUS")] = None
    head_memory: Annotated[str | None, _option("--head-memory", PODS, "Memory of the head (16Gi).", "SIZE")] = None
    role: Annotated[str | None, _option("--role", PODS, "AWS role of the pods (IRSA).", "ARN")] = None
    secret: Annotated[
        str | None, _option("--secret", PODS, "Secret whose keys become environment variables (HF_TOKEN).", "NAME")
    ] = None
    image_pull_secrets: Annotated[
        list[str] | None,
        _option("--image-pull-secret", PODS, "Secret with the credentials of the image's registry.", "NAME"),
    ] = None
    priority_class: Annotated[str | None, _option("--priority-class", PODS, "PriorityClass of all pods.", "NAME")] = (
        None
    )


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Options of targets that are Kubernetes objects."""

    namespace: Annotated[
        str | None, _option("--namespace", KUBERNETES, "Namespace of all rendered objects.", "NAME")
    ] = None
    queue: Annotated[str | None, _option("--queue", KUBERNETES, "Kueue's LocalQueue.", "NAME")] = None
    deadline_s: Annotated[
        int | None, _option("--deadline-seconds", KUBERNETES, "Seconds after which KubeRay ends the job.", "N", 1)
    ] = None
    keep_cluster_s: Annotated[
        int | None,
        _option("--keep-cluster-seconds", KUBERNETES, "Seconds that the cluster stays after its job (300).", "N", 0),
    ] = None
    operator_namespace: Annotated[
        str | None,
        _option("--operator-namespace", KUBERNETES, "Namespace of KubeRay's operator (kuberay-operator).", "NAME"),
    ] = None
    monitoring_namespace: Annotated[
        str | None, _option("--monitoring-namespace", KUBERNETES, "Namespace of Prometheus (monitoring).", "NAME")
    ] = None
    allow_egress: Annotated[
        list[str] | None,
        _option("--allow-egress", KUBERNETES, "Link-local addresses that pods may reach; may be repeated.", "CIDR"),
    ] = None


@dataclass(frozen=True, slots=True)
class Aws:
    """Options of the target `aws`."""

    region: Annotated[str | None, _option("--region", AWS, "Region (us-east-1).", "REGION")] = None
    instance_profile: Annotated[
        str | None, _option("--instance-profile", AWS, "Instance profile of the machines.", "NAME|ARN")
    ] = None
    head_instance_profile: Annotated[
        str | None, _option("--head-instance-profile", AWS, "Instance profile of the head, if it differs.", "NAME|ARN")
    ] = None
    security_group: Annotated[
        str | None,
        _option("--security-group", AWS, "Security group of all machines. Without it, Ray creates one.", "ID"),
    ] = None


@dataclass(frozen=True, slots=True)
class PlatformOptions:
    """The options of all groups.

    Attributes:
        given: Field of a group to value, for options that stand on the command line.
    """

    given: dict[str, Any]

    def accelerators(self) -> list[str]:
        """Names in `--accelerator`, in the order of the command line."""
        return [item.partition("=")[0] for item in self.given.get("accelerators", [])]

    def fields(self) -> dict[str, Any]:
        """The fields of `deploy.Platform` that the options set."""
        found = {name: tuple(value) if isinstance(value, list) else value for name, value in self.given.items()}
        if "accelerators" in found:
            parted = [item.partition("=") for item in found["accelerators"]]
            found["accelerators"] = {name: label for name, _, label in parted}
        if found.get("spot") == "none":
            found["spot"] = None
        return found


def with_platform_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options of the groups above, and hand them to it as one record.

    Typer reads options from a function's signature and knows no records. So the signature is made from the records.

    Args:
        command: Function with the command's other options, and with `options`, a `PlatformOptions`.
    """
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for group in (Nodes, Pods, Kubernetes, Aws)
        for name, annotation in get_type_hints(group, include_extras=True).items()
    ]
    signature = inspect.signature(command)
    own = [parameter for name, parameter in signature.parameters.items() if name != "options"]

    @wraps(command)
    def called(**values: Any) -> None:
        platform = {one.name: values.pop(one.name) for one in added}
        given = {name: value for name, value in platform.items() if value is not None and value != []}
        command(**values, options=PlatformOptions(given))

    called.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    return called
