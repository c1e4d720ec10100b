"""Options of `deploy render`: everything about the platform that a spec does not say.

They are checked before anything is rendered.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum

from magbatch.deploy.forms import FORMS, check_accelerator, check_egress, check_form, flag
from magbatch.errors import SpecError
from magbatch.fleet import ray_settings

RAY_VERSION = ray_settings.VERSION
REGION = "us-east-1"  # without --region
SPEC_PATH = "/etc/magbatch/job.yaml"
DASHBOARD_PORT = 8265
USER_ID = 1000  # user of the images in deploy/
READER_CPUS = 3  # in addition to the CPUs of a replica: for reading, rendering and tokenizing


class Target(StrEnum):
    """Platform that files are rendered for. A closed list."""

    KUBERAY = "kuberay"
    CLUSTER = "raycluster"
    CRON = "cron"
    AWS = "aws"


@dataclass(frozen=True, slots=True)
class Platform:
    """Options of a platform. `check` refuses options that the rendered target does not have.

    Attributes:
        image: Container image, built from `deploy/Dockerfile.gpu`.
        spot: `label=value` of spot nodes, tolerated as a taint too; None uses only on-demand nodes.
        accelerators: `label=value` of nodes by Ray's name of their accelerator; "" stands for Karpenter's label on AWS.
        gpu_memory_gb: Smallest memory of each GPU in GB as vendors count them (80 for an H100); None sets no bound.
        cache_size: Size of the volume for the model's files, a Kubernetes quantity.
        scratch_size: Disk of a pod for spilled objects, logs and temporary files, a Kubernetes quantity.
        zone: Availability zone of all pods or machines; None allows any.
        namespace: Kubernetes namespace of all rendered objects; None leaves it to kubectl.
        image_pull_secrets: Names of Secrets with access to the registry of the image.
        priority_class: PriorityClass of all pods; None sets none.
        queue: LocalQueue of Kueue; None uses no queue.
        deadline_s: Seconds after which KubeRay ends the job; None sets no limit.
        keep_cluster_s: Seconds for which the cluster stays after the end of the job.
        worker_cpu: CPUs of a worker; None computes them from `replicas.cpus`.
        worker_memory: Memory of a worker, a Kubernetes quantity; None takes 64Gi for each GPU.
        head_cpu: CPUs of the head.
        head_memory: Memory of the head, a Kubernetes quantity.
        storage_class: StorageClass of the model's volume; None takes the disk of the node.
        role: ARN of the AWS role of the pods (IRSA); None sets none.
        secret: Name of a Secret whose keys become environment variables, such as HF_TOKEN; None sets none.
        operator_namespace: Namespace of KubeRay's operator.
        monitoring_namespace: Namespace of Prometheus.
        allow_egress: Link-local CIDRs that pods may reach nevertheless.
        region: AWS region; None takes us-east-1.
        instance_profile: Name or ARN of the instance profile of workers; None sets none.
        head_instance_profile: Name or ARN of the instance profile of the head; None takes that of workers.
        security_group: Id of the security group of all machines; None leaves it to Ray.
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
# Options by the targets that have them. Every target has the remaining options.
_ONLY: dict[frozenset[Target], list[str]] = {
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
    ("role", Target.AWS): "AWS machines run no pods; write --instance-profile NAME",
    ("secret", Target.AWS): "AWS machines have no Secrets; give the right to the instance profile (--instance-profile)",
    ("queue", Target.CRON): "Kueue finds a job by its label, and a RayCronJob passes no label on to its RayJobs; "
    "make a LocalQueue of the name `default` in the namespace instead",
    **{
        (option, target): _NO_PROFILE
        for option in ("instance_profile", "head_instance_profile")
        for target in sorted(_KUBERNETES)
    },
}


def check(platform: Platform, target: Target) -> None:
    """Refuse options that have no meaning for a target.

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
    """Refuse labels of nodes, which AWS machines do not have, and a zone of another region."""
    if platform.spot not in (None, _DEFAULT.spot):
        raise SpecError(f"--spot {platform.spot}: machines on AWS have no labels; write --spot none, or leave it out")
    for name, label in platform.accelerators.items():
        if label:
            raise SpecError(f"--accelerator {name}={label}: machines on AWS have no labels; write --accelerator {name}")
    region, zone = platform.region or REGION, platform.zone
    if zone is not None and re.fullmatch(re.escape(region) + "([a-z]|-[a-z]+-[0-9][a-z])", zone) is None:
        raise SpecError(f"--zone {zone} is not in {region}; write --region and one of its zones, such as {region}a")
