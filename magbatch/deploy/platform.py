"""What a spec does not say: where a job is run. Options of `deploy render`, checked before anything is rendered."""

import ipaddress
import re
from dataclasses import dataclass, field
from enum import StrEnum

from magbatch.errors import SpecError

RAY_VERSION = "2.60.0"
SPEC_PATH = "/etc/magbatch/job.yaml"
METRICS_PORT = 9480
DASHBOARD_PORT = 8265
USER_ID = 1000  # of the images in deploy/
READER_CPUS = 3  # beside each replica: they read, render and tokenize for it

_QUANTITY = re.compile(r"([1-9][0-9]*)(Ki|Mi|Gi|Ti|k|M|G|T)")
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_CPUS = re.compile(r"[1-9][0-9]*")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::[0-9]+:role/\S+")
_PROFILE = re.compile(r"arn:aws[a-z-]*:iam::[0-9]+:instance-profile/\S+")
_PROFILE_NAME = re.compile(r"[A-Za-z0-9+=,.@_-]{1,128}")


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
        if not self.image or re.search(r"\s", self.image):
            raise SpecError(f"--image {self.image!r}: write registry/name:tag or registry/name@sha256:…")
        if self.spot is not None and not all(self.spot.partition("=")):
            raise SpecError(f"--spot {self.spot}: write label=value, such as karpenter.sh/capacity-type=spot")
        for name, label in self.accelerators.items():
            if not name or (label and not all(label.partition("="))):
                raise SpecError(
                    f"--accelerator {name}={label}: write NAME=label=value, "
                    "such as H100=cloud.google.com/gke-accelerator=nvidia-h100-80gb, or NAME alone for Karpenter on AWS"
                )
        self._check_quantities()
        self._check_names()
        if self.role is not None and _ROLE.fullmatch(self.role) is None:
            raise SpecError(f"--role {self.role}: write the role's ARN, arn:aws:iam::ACCOUNT:role/NAME")
        for option in ("instance_profile", "head_instance_profile"):
            profile = getattr(self, option)
            if profile is not None and not (_PROFILE.fullmatch(profile) or _PROFILE_NAME.fullmatch(profile)):
                raise SpecError(
                    f"{flag(option)} {profile}: write the name of an instance profile or its ARN, "
                    "arn:aws:iam::ACCOUNT:instance-profile/NAME; a role's ARN is none"
                )
        for network in self.allow_egress:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise SpecError(f"--allow-egress {network}: write a CIDR, such as 169.254.170.23/32") from error

    def _check_quantities(self) -> None:
        for option in ("cache_size", "scratch_size", "head_memory", "worker_memory"):
            if (value := getattr(self, option)) is not None and _QUANTITY.fullmatch(value) is None:
                raise SpecError(f"{flag(option)} {value}: write a size such as 100Gi")
        for option in ("head_cpu", "worker_cpu"):
            if (value := getattr(self, option)) is not None and _CPUS.fullmatch(value) is None:
                raise SpecError(f"{flag(option)} {value}: write a whole number of CPUs, such as 8")
        for option in ("gpu_memory_gb", "deadline_s"):
            if (value := getattr(self, option)) is not None and value < 1:
                raise SpecError(f"{flag(option)} {value}: write a number of 1 or more")
        if self.keep_cluster_s < 0:
            raise SpecError(f"{flag('keep_cluster_s')} {self.keep_cluster_s}: write 0 or more seconds")

    def _check_names(self) -> None:
        names = {
            option: getattr(self, option)
            for option in ("namespace", "operator_namespace", "monitoring_namespace", "priority_class", "queue",
                           "secret", "storage_class")
        }  # fmt: skip
        pairs = [*names.items(), *(("image_pull_secrets", name) for name in self.image_pull_secrets)]
        for option, name in pairs:
            if name is not None and _NAME.fullmatch(name) is None:
                raise SpecError(f"{flag(option)} {name}: write a name as Kubernetes takes it: a-z, 0-9, - and .")


_FLAGS = {
    "deadline_s": "--deadline-seconds",
    "keep_cluster_s": "--keep-cluster-seconds",
    "accelerators": "--accelerator",
    "image_pull_secrets": "--image-pull-secret",
}
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


def flag(option: str) -> str:
    """The command's option of an attribute."""
    return _FLAGS.get(option, f"--{option.replace('_', '-')}")


def size(quantity: str) -> int:
    """Bytes of a Kubernetes quantity such as 100Gi."""
    found = _QUANTITY.fullmatch(quantity)
    if found is None:
        raise ValueError(quantity)
    return int(found[1]) * _UNITS[found[2]]
