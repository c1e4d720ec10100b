"""A job spec -> the files that a platform runs it from: devices, replicas and model are written once, in the spec.

Nothing here holds a secret: access comes from the identity of the pods or machines, or from a Secret that is named.
"""

import hashlib
import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import yaml

from magbatch.errors import OutputError, SpecError
from magbatch.spec import JobSpec, ShapeSpec

RAY_VERSION = "2.60.0"
IMAGE = "ghcr.io/acme/magbatch:0.1.0-gpu"
SPEC_PATH = "/etc/magbatch/job.yaml"
METRICS_PORT = 9480
# All of them: a head that declares one may lose those that KubeRay declares by itself.
HEAD_PORTS = {"magbatch": METRICS_PORT, "gcs-server": 6379, "dashboard": 8265, "client": 10001}
USER_ID = 1000  # of the images in deploy/
# A replica commits what is finished within 25 s of its notice; the rest is for the processes to end.
WORKER_GRACE_S = 60
HEAD_GRACE_S = 120
JOB_STOP_WAIT_S = 90  # Ray's own is 3
MAX_NAME = 35  # of 47 that a RayJob may have
NAME_HASH = 8
BACKOFF = 5  # a driver that has died is started again, and goes on where it was
READER_CPUS = 3  # beside each replica: they read, render and tokenize for it
HEAD_CPUS = 4
AWS_ACCELERATOR = "H100"  # where the spec prefers none
AWS_INSTANCES = {  # by accelerator, as Ray names it, and by GPUs
    "H200": {8: "p5en.48xlarge"},
    "H100": {1: "p5.4xlarge", 8: "p5.48xlarge"},
    "A100": {8: "p4de.24xlarge"},
    "L40S": {1: "g6e.4xlarge", 4: "g6e.12xlarge", 8: "g6e.48xlarge"},
    "L4": {1: "g6.4xlarge", 4: "g6.12xlarge", 8: "g6.48xlarge"},
}
KARPENTER_ACCELERATOR = "karpenter.k8s.aws/instance-gpu-name"  # h100, a100, l40s


class Target(StrEnum):
    """What is rendered for. A closed list."""

    KUBERAY = "kuberay"
    CLUSTER = "raycluster"
    CRON = "cron"
    AWS = "aws"


@dataclass(frozen=True, slots=True)
class Platform:
    """What a spec does not say: where it is run.

    Attributes:
        image: The container image, of `deploy/Dockerfile.gpu`.
        spot: `label=value` of spot nodes, tolerated as a taint too; None uses on-demand nodes alone.
        accelerators: `label=value` of the nodes of an accelerator, by Ray's name of it; else Karpenter's label for AWS.
        role_arn: The AWS role that the pods take (IRSA); on `aws` the name of an instance profile.
        secret: A Secret whose keys become environment variables, such as HF_TOKEN.
        monitoring: The namespace from which Prometheus reads.
        region: Of AWS.
    """

    image: str = IMAGE
    spot: str | None = "karpenter.sh/capacity-type=spot"
    accelerators: dict[str, str] = field(default_factory=dict)
    role_arn: str | None = None
    secret: str | None = None
    monitoring: str = "monitoring"
    region: str = "us-east-1"

    def __post_init__(self) -> None:
        if self.spot is not None and not all(self.spot.partition("=")):
            raise SpecError(f"--spot {self.spot}: write label=value, such as karpenter.sh/capacity-type=spot")
        for name, label in self.accelerators.items():
            if not name or not all(label.partition("=")):
                raise SpecError(
                    f"--accelerator {name}={label}: write NAME=label=value, "
                    "such as H100=cloud.google.com/gke-accelerator=nvidia-h100-80gb"
                )


def render(spec: JobSpec, target: Target, platform: Platform) -> dict[str, str]:
    """The files of a target.

    Returns:
        File name to YAML text.

    Raises:
        SpecError: The spec has what the target cannot run: local paths, or no schedule for `cron`.
    """
    for name, path in (("input.path", spec.input.path), ("output.path", spec.output.path)):
        if not path.startswith("s3://"):
            raise SpecError(f"{name} {path}: a cluster's machines share no disk; write s3://bucket/prefix")
    if spec.input.incremental and target != Target.CRON:
        raise SpecError("input.incremental: such a job runs by its schedule: --target cron")
    served = spec.metrics.model_copy(update={"bind": "0.0.0.0", "port": METRICS_PORT})
    spec = spec.model_copy(update={"metrics": served})
    if target == Target.AWS:
        if platform.secret is not None:
            raise SpecError(
                "--secret: there is no Secret on AWS machines; give the instance profile the right (--role)"
            )
        return {"job.yaml": spec.to_yaml(), "cluster.yaml": _yaml(_launcher(spec, platform))}
    kinds = {Target.CRON: _cron_job, Target.CLUSTER: _ray_cluster, Target.KUBERAY: _ray_job}
    job = kinds[target](spec, platform)
    objects = {
        "serviceaccount.yaml": _service_account(spec, platform),
        "configmap.yaml": {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": _metadata(spec),
            "data": {"job.yaml": spec.to_yaml()},
        },
        "networkpolicy.yaml": _network_policy(spec, platform),
        "podmonitor.yaml": _pod_monitor(spec),
        f"{job['kind'].lower()}.yaml": job,
    }
    layout = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(objects),
    }
    return {name: _yaml(manifest) for name, manifest in {"kustomization.yaml": layout, **objects}.items()}


def write(files: dict[str, str], folder: str) -> None:
    """Write rendered files into a folder, which is made where it is not there.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error}") from error


class _Dumper(yaml.SafeDumper):
    """A file within a file is written as one, line by line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(manifest: dict[str, Any]) -> str:
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _name(spec: JobSpec) -> str:
    """A name that Kubernetes takes for all that is made of it: KubeRay adds a time to it, and names Services by it.

    Different jobs have different names: a hash of the whole name ends one that had to be changed or cut.
    """
    name = spec.name.lower().replace(".", "-").replace("_", "-").strip("-")
    name = name if name[:1].isalpha() else f"job-{name}"
    if name == spec.name and len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(spec.name.encode()).hexdigest()[:NAME_HASH]
    return f"{name[: MAX_NAME - NAME_HASH - 1].strip('-')}-{digest}"


def _metadata(spec: JobSpec) -> dict[str, Any]:
    return {"name": _name(spec), "labels": _labels(spec)}


def _labels(spec: JobSpec) -> dict[str, str]:
    return {"app.kubernetes.io/name": "magbatch", "app.kubernetes.io/instance": _name(spec)}


def _own_label(spec: JobSpec) -> dict[str, str]:
    """What pods are found by: KubeRay has a mind of its own about the application's name."""
    return {"app.kubernetes.io/instance": _name(spec)}


def _service_account(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Without any right of its own: the operator binds the autoscaler's Role to it; the head alone has the token."""
    metadata = _metadata(spec)
    if platform.role_arn is not None:
        metadata["annotations"] = {"eks.amazonaws.com/role-arn": platform.role_arn}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }


def _network_policy(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """The job's pods reach each other; the operator the dashboard; Prometheus the metrics. Nobody else comes in."""
    of_job = {"podSelector": {"matchLabels": _own_label(spec)}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    submitter = {"podSelector": {"matchExpressions": [{"key": "batch.kubernetes.io/job-name", "operator": "Exists"}]}}
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": platform.monitoring}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(spec),
        "spec": {
            "podSelector": {"matchLabels": _own_label(spec)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [of_job]},
                {"from": [operator, submitter], "ports": [{"port": 8265, "protocol": "TCP"}]},
                {"from": [prometheus], "ports": [{"port": METRICS_PORT, "protocol": "TCP"}]},
            ],
        },
    }


def _pod_monitor(spec: JobSpec) -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": _metadata(spec),
        "spec": {
            "selector": {"matchLabels": {**_own_label(spec), "ray.io/node-type": "head"}},
            "podMetricsEndpoints": [{"port": "magbatch", "path": "/metrics", "interval": "15s"}],
        },
    }


def _ray_job(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(spec),
        "spec": _job_spec(spec, platform, f"magbatch run {SPEC_PATH}"),
    }


def _ray_cluster(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """A cluster that stays, for jobs that are sent to it by `magbatch submit`."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(spec),
        "spec": cluster(spec, platform),
    }


def _cron_job(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """A tick that comes while the last one works is refused by its lease, and caught up with by the next."""
    if spec.schedule is None:
        raise SpecError('schedule: is missing; write schedule: {cron: "0 6 * * *", timezone: Europe/Paris}')
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": _metadata(spec),
        "spec": {
            "schedule": spec.schedule.cron,
            "timeZone": spec.schedule.timezone,
            "suspend": False,
            "jobTemplate": _job_spec(spec, platform, f"magbatch schedule tick {SPEC_PATH}"),
        },
    }


def _job_spec(spec: JobSpec, platform: Platform, entrypoint: str) -> dict[str, Any]:
    environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_S), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    return {
        "entrypoint": entrypoint,
        "runtimeEnvYAML": _yaml({"env_vars": environment}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 300,
        "backoffLimit": BACKOFF,
        "rayClusterSpec": cluster(spec, platform),
    }


def cluster(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """The `spec` of a RayCluster that a job fits: no GPU until rows wait, one replica in a pod."""
    head = _pod(
        spec, platform, "ray-head", {"cpu": str(HEAD_CPUS), "memory": "16Gi"}, HEAD_GRACE_S,
        ports=[{"name": name, "containerPort": port} for name, port in HEAD_PORTS.items()],
    )  # fmt: skip
    head["spec"]["automountServiceAccountToken"] = True  # the autoscaler beside it asks Kubernetes for pods
    shapes, gpus = _shapes(spec, platform), spec.replicas.gpus
    groups = [_worker_group(spec, platform, shape, len(shapes) - number) for number, shape in enumerate(shapes)]
    return {
        "rayVersion": RAY_VERSION,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 120},
        "headGroupSpec": {
            # Its CPUs read and render for replicas with GPUs; one without would be placed on them.
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": str(HEAD_CPUS // 2 if gpus else 0)},
            "template": head,
        },
        "workerGroupSpecs": groups,
    }


def _shapes(spec: JobSpec, platform: Platform) -> list[ShapeSpec]:
    """Kinds of nodes, best first: what the spec prefers, else spot before on-demand."""
    if not spec.replicas.prefer:
        markets: list[Literal["spot", "on-demand"]] = ["on-demand"] if platform.spot is None else ["spot", "on-demand"]
        return [ShapeSpec(market=market) for market in markets]
    if platform.spot is None and any(shape.market == "spot" for shape in spec.replicas.prefer):
        raise SpecError("--spot none: replicas.prefer asks for spot nodes; say what they are labelled with")
    names = [_group_name(shape) for shape in spec.replicas.prefer]
    if len(set(names)) < len(names) or not all(names):
        raise SpecError(f"replicas.prefer: {', '.join(names)}: each is to be a group of nodes with a name of its own")
    return spec.replicas.prefer


def _group_name(shape: ShapeSpec) -> str:
    """Of the parts that tell it apart, as Kubernetes takes them."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(shape.selector.values()).lower()).strip("-")


def _worker_group(spec: JobSpec, platform: Platform, shape: ShapeSpec, priority: int) -> dict[str, Any]:
    replicas = spec.replicas
    resources = {"cpu": str(math.ceil(replicas.cpus) + READER_CPUS), "memory": f"{64 * max(1, replicas.gpus)}Gi"}
    if replicas.gpus:
        resources["nvidia.com/gpu"] = str(replicas.gpus)
    pod = _pod(spec, platform, "ray-worker", resources, WORKER_GRACE_S)
    # Ray ends its workers at once when its node is told to go: the replicas are told first, and have 25 s.
    hook = "pkill -TERM -f '[M]apWorker'; sleep 25"  # in brackets: else the shell's own command line fits
    pod["spec"]["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", hook]}}}
    pod["spec"]["automountServiceAccountToken"] = False
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if replicas.gpus else []
    nodes = dict(shape.labels)  # Kubernetes' nodes must have what Ray is told that they have
    if shape.market == "on-demand" and platform.spot is not None:
        label, _, value = platform.spot.partition("=")
        other = {"matchExpressions": [{"key": label, "operator": "NotIn", "values": [value]}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [other]}}
        pod["spec"]["affinity"] = {"nodeAffinity": required}
    if shape.market == "spot" and platform.spot is not None:
        label, _, value = platform.spot.partition("=")
        nodes[label] = value
        tolerations.append({"key": label, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    if shape.accelerator is not None:
        if "-" in shape.accelerator and shape.accelerator not in platform.accelerators:
            raise SpecError(
                f"replicas.prefer: {shape.accelerator}: say what its nodes are labelled with: "
                f"--accelerator {shape.accelerator}=LABEL=VALUE"
            )
        default = f"{KARPENTER_ACCELERATOR}={shape.accelerator.lower()}"
        label, _, value = platform.accelerators.get(shape.accelerator, default).partition("=")
        nodes[label] = value
    if nodes:
        pod["spec"]["nodeSelector"] = nodes
    if tolerations:
        pod["spec"]["tolerations"] = tolerations
    return {
        "groupName": _group_name(shape),
        "labels": shape.selector,  # the autoscaler must know them before there is a node
        "priority": priority,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": replicas.max,
        "rayStartParams": {},
        "template": pod,
    }


def _pod(
    spec: JobSpec,
    platform: Platform,
    container: str,
    resources: dict[str, str],
    grace_s: int,
    ports: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    cache = "/home/magbatch/.cache"
    main: dict[str, Any] = {
        "name": container,
        "image": platform.image,
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "job", "mountPath": str(Path(SPEC_PATH).parent), "readOnly": True},
            {"name": "cache", "mountPath": cache},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if ports:
        main["ports"] = ports
    if platform.secret is not None:
        main["envFrom"] = [{"secretRef": {"name": platform.secret}}]
    return {
        "metadata": {"labels": _labels(spec)},
        "spec": {
            "serviceAccountName": _name(spec),
            "terminationGracePeriodSeconds": grace_s,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "runAsGroup": USER_ID,
                "fsGroup": USER_ID,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [main],
            "volumes": [
                {"name": "job", "configMap": {"name": _name(spec)}},
                {"name": "cache", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
            ],
        },
    }


def _launcher(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Ray's cluster launcher: a head that stays, workers that come and go."""
    gpus = spec.replicas.gpus
    profile: dict[str, Any] = {"IamInstanceProfile": {"Name": platform.role_arn}} if platform.role_arn else {}
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}}
    workers: dict[str, dict[str, Any]] = {}
    for shape in _shapes(spec, platform):
        kind, per_node = _instance(shape, gpus)
        config = profile | {"InstanceType": kind} | (spot if shape.market == "spot" else {})
        workers[_group_name(shape).replace("-", "_")] = {
            "min_workers": 0,
            "max_workers": math.ceil(spec.replicas.max / per_node),
            "resources": {},
            "labels": shape.selector,
            "node_config": config,
        }
    nodes = max(worker["max_workers"] for worker in workers.values())
    stop, start = "ray stop", "ulimit -n 65536; ray start"
    return {
        "cluster_name": _name(spec),
        "max_workers": nodes,
        "idle_timeout_minutes": 2,
        "provider": {"type": "aws", "region": platform.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "docker": {
            "image": platform.image,
            "container_name": "magbatch",
            "run_options": ["--ulimit nofile=65536:65536", "--shm-size=8g"],
            "worker_run_options": ["--gpus all"] if gpus else [],
        },
        "available_node_types": {
            "head": {"resources": {}, "node_config": profile | {"InstanceType": "m7i.2xlarge"}},
            **workers,
        },
        "head_node_type": "head",
        "file_mounts": {"/tmp/magbatch/job.yaml": "job.yaml"},
        "head_start_ray_commands": [
            stop,
            f"{start} --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [stop, f"{start} --address=$RAY_HEAD_IP:6379"],
    }


def _instance(shape: ShapeSpec, gpus: int) -> tuple[str, int]:
    """The machine that a replica fits, and how many of them fit it."""
    if not gpus:
        return "m7i.2xlarge", 1
    name = shape.accelerator or AWS_ACCELERATOR
    sizes = AWS_INSTANCES.get(name)
    if sizes is None:
        raise SpecError(f"replicas.prefer: {name} is on no AWS machine known here: {', '.join(AWS_INSTANCES)}")
    if gpus > max(sizes):
        raise SpecError(f"replicas.gpus: {gpus} are more than one machine has here ({max(sizes)} {name})")
    size = min(size for size in sizes if size >= gpus)
    return sizes[size], size // gpus
