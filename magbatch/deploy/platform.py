"""What a spec does not say: where a job is run. Options of `deploy render`, checked before anything is rendered."""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from magbatch.deploy.forms import FORMS, check_accelerator, check_egress, check_form, flag
from magbatch.errors import SpecError
from magbatch.fleet import ray_settings

RAY_VERSION = ray_settings.VERSION
REGION = "us-east-1"  # where --region names none
SPEC_PATH = "/etc/magbatch/job.yaml"
METRICS_PORT = 9480
DASHBOARD_PORT = 8265
USER_ID = 1000  # of the images in deploy/
READER_CPUS = 3  # beside each replica: they read, render and tokenize for it


class Target(StrEnum):
    """What is rendered for. A closed list."""

    KUBERAY = "kuberay"
    CLUSTER = "raycluster"
    CRON = "cron"
    AWS = "aws"


@dataclass(frozen=True, slots=True)
class Platform:
    """Options of one platform. Options of another target than the rendered one are refused by `check`.

    Attributes:
        image: str: container image, built from `deploy/Dockerfile.gpu`.
        spot: str or None: `label=value` of spot nodes, tolerated as a taint too; None uses on-demand nodes alone.
        accelerators: dict: `label=value` of the nodes of an accelerator by Ray's name of it; "" is Karpenter's for AWS.
        gpu_memory_gb: int or None: least memory of each GPU, in GB as vendors count (80 for an H100).
        cache_size: str: size of the volume that holds the model's files, a Kubernetes quantity.
        scratch_size: str: disk of a pod for Ray's spilled objects, logs and temporary files, a Kubernetes quantity.
        zone: str or None: availability zone of all pods or machines.
        namespace: str or None: Kubernetes namespace of everything that is rendered.
        image_pull_secrets: tuple: names of Secrets that open the image's registry.
        priority_class: str or None: PriorityClass of all pods.
        queue: str or None: Kueue's LocalQueue.
        deadline_s: int or None: seconds after which KubeRay ends the job.
        keep_cluster_s: int: seconds that the cluster stays after the job's end.
        worker_cpu: str or None: CPUs of a worker; None computes them from `replicas.cpus`.
        worker_memory: str or None: memory of a worker, a Kubernetes quantity; None is 64Gi for each GPU.
        head_cpu: str: CPUs of the head.
        head_memory: str: memory of the head, a Kubernetes quantity.
        storage_class: str or None: StorageClass of the model's volume; None takes the node's own disk.
        role: str or None: ARN of the AWS role that the pods take (IRSA).
        secret: str or None: name of a Secret whose keys become environment variables, such as HF_TOKEN.
        operator_namespace: str: namespace of KubeRay's operator.
        monitoring_namespace: str: namespace from which Prometheus reads.
        allow_egress: tuple: link-local CIDRs that pods may reach all the same.
        region: str or None: AWS region; None is us-east-1.
        instance_profile: str or None: name or ARN of the instance profile of workers.
        head_instance_profile: str or None: name or ARN of that of the head, which adds workers.
        security_group: str or None: id of the security group of all machines.
    """

    image: str
    spot: str | None = "karpenter.sh/capacity-type=spot"
    accelerators: dict[str, str] = field(default_factory=dict)
    gpu_memory_gb: int | None = None
    cache_size: str = "100Gi"
    scratch_size: str = "50Gi"
    zone: str | None = None
    namespace: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    priority_class: str | None = None
    queue: str | None = None
    deadline_s: int | None = None
    keep_cluster_s: int = 300
    worker_cpu: str | None = None
    worker_memory: str | None = None
    head_cpu: str = "4"
    head_memory: str = "16Gi"
    storage_class: str | None = None
    role: str | None = None
    secret: str | None = None
    operator_namespace: str = "kuberay-operator"
    monitoring_namespace: str = "monitoring"
    allow_egress: tuple[str, ...] = ()
    region: str | None = None
    instance_profile: str | None = None
    head_instance_profile: str | None = None
    security_group: str | None = None

    def __post_init__(self) -> None:
        for option in FORMS:
            check_form(option, getattr(self, option))
        for name, label in self.accelerators.items():
            check_accelerator(name, label)
        for network in self.allow_egress:
            check_egress(network)


_DEFAULT = Platform(image="x")
_KUBERNETES = frozenset({Target.KUBERAY, Target.CLUSTER, Target.CRON})
_JOBS = frozenset({Target.KUBERAY, Target.CRON})
_ONLY: dict[frozenset[Target], list[str]] = {  # options by the targets that have them; the other options are for all
    frozenset({Target.AWS}): ["region", "instance_profile", "head_instance_profile", "security_group"],
    _KUBERNETES: [
        "namespace", "image_pull_secrets", "priority_class", "worker_cpu", "worker_memory", "head_cpu", "head_memory",
        "storage_class", "operator_namespace", "monitoring_namespace", "allow_egress", "role", "secret",
    ],
    _JOBS: ["deadline_s", "keep_cluster_s"],
    frozenset({Target.KUBERAY, Target.CLUSTER}): ["queue"],
}  # fmt: skip
_NO_PROFILE = "pods have no instance profile; write --role arn:aws:iam::ACCOUNT:role/NAME"
_INSTEAD = {
    ("role", Target.AWS): "there are no pods on AWS machines; write --instance-profile NAME",
    ("secret", Target.AWS): "there is no Secret on AWS machines; give the instance profile the right "
    "(--instance-profile)",
    ("queue", Target.CRON): "Kueue finds a job by its label, and a RayCronJob passes no label on to its RayJobs; "
    "make a LocalQueue of the name `default` in the namespace instead",
    **{
        (option, target): _NO_PROFILE
        for option in ("instance_profile", "head_instance_profile")
        for target in sorted(_KUBERNETES)
    },
}


def check(platform: Platform, target: Target) -> None:
    """Refuse options that say nothing to a target.

    Raises:
        SpecError: An option is set that the target does not have.
    """
    for targets, options in _ONLY.items():
        for option in options:
            if target not in targets and getattr(platform, option) != getattr(_DEFAULT, option):
                raise SpecError(
                    f"{flag(option)}: {_INSTEAD.get((option, target), f'--target {target} has no such option')}"
                )
    if target == Target.AWS:
        _check_aws(platform)


def _check_aws(platform: Platform) -> None:
    """Refuse labels of nodes, and a zone of another region."""
    if platform.spot not in (None, _DEFAULT.spot):
        raise SpecError(f"--spot {platform.spot}: machines on AWS have no labels; write --spot none, or leave it out")
    for name, label in platform.accelerators.items():
        if label:
            raise SpecError(f"--accelerator {name}={label}: machines on AWS have no labels; write --accelerator {name}")
    region, zone = platform.region or REGION, platform.zone
    if zone is not None and re.fullmatch(re.escape(region) + "([a-z]|-[a-z]+-[0-9][a-z])", zone) is None:
        raise SpecError(f"--zone {zone}: is not in {region}; write --region and one of its zones, such as {region}a")
