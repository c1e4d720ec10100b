"""Pods of a job: head, workers and submitter. Each fits the "restricted" profile of Pod Security."""

import math
from pathlib import Path
from typing import Any

from magbatch.deploy.forms import size
from magbatch.deploy.names import RAY, SUBMITTER, job_name, pod_labels
from magbatch.deploy.nodes import place_lasting, place_worker
from magbatch.deploy.platform import DASHBOARD_PORT, READER_CPUS, SPEC_PATH, USER_ID, Platform
from magbatch.errors import SpecError
from magbatch.fleet.ray_settings import REPLICA_PROCESS
from magbatch.spec import JobSpec, ShapeSpec
from magbatch.spec.sections_output import METRICS_PORT

# All ports of the head: if it declares one port, KubeRay may not add its own.
HEAD_PORTS = {"magbatch": METRICS_PORT, "gcs-server": 6379, "dashboard": DASHBOARD_PORT, "client": 10001}
NOTICE_S = 25  # as `Timing.notice_s` of a replica, which is not imported because it loads much; a test compares them
WORKER_GRACE_S = 60  # a replica has its notice of 25 s to commit finished rows; then its processes end
HEAD_GRACE_S = 120
HEAD_CACHE = "10Gi"  # for tokenizer and configuration; only workers hold weights
OBJECT_STORE_SHARE = 0.3  # of a node's memory: Ray's default for its object store, which is in /dev/shm
TOKEN_VOLUME = "kubernetes-token"
TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
STAYS = {  # annotations that keep Karpenter and the Cluster Autoscaler from removing the node of a pod
    "karpenter.sh/do-not-disrupt": "true",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
}
CONTAINER_SECURITY: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def head_pod(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return the pod of the head, where the driver runs. Only the autoscaler's container gets Kubernetes' token."""
    resources = {"cpu": platform.head_cpu, "memory": platform.head_memory}
    pod = _ray_pod(spec, platform, "ray-head", resources, HEAD_GRACE_S, _node_disk(HEAD_CACHE))
    main = pod["spec"]["containers"][0]
    main["ports"] = [{"name": name, "containerPort": port} for name, port in HEAD_PORTS.items()]
    pod["metadata"]["annotations"] = dict(STAYS)
    pod["spec"]["volumes"].append({"name": TOKEN_VOLUME, "projected": {"sources": _token_sources()}})
    place_lasting(pod["spec"], platform)
    return pod


def token_mount() -> dict[str, Any]:
    """Return the mount at which the autoscaler expects Kubernetes' token."""
    return {"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": True}


def _token_sources() -> list[dict[str, Any]]:
    """Return the sources that Kubernetes itself would mount for a service account's token."""
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [namespace]}},
    ]


def worker_pod(spec: JobSpec, platform: Platform, shape: ShapeSpec) -> dict[str, Any]:
    """Return the pod of a worker: a node for one replica, with CPUs to read its rows.

    Raises:
        SpecError: `--worker-cpu` is too small for a replica and its readers.
    """
    replicas = spec.replicas
    if platform.worker_cpu is not None and int(platform.worker_cpu) < math.ceil(replicas.cpus) + 1:
        raise SpecError(
            f"--worker-cpu {platform.worker_cpu}: replicas.cpus takes {replicas.cpus:g} of them, "
            f"and reading at least 1; write {math.ceil(replicas.cpus) + 1} or more"
        )
    resources = {
        "cpu": platform.worker_cpu or str(math.ceil(replicas.cpus) + READER_CPUS),
        "memory": platform.worker_memory or f"{64 * max(1, replicas.gpus)}Gi",
    }
    if replicas.gpus:
        resources["nvidia.com/gpu"] = str(replicas.gpus)
    cache = _node_disk(platform.cache_size) if platform.storage_class is None else _volume(platform)
    pod = _ray_pod(spec, platform, "ray-worker", resources, WORKER_GRACE_S, cache)
    # When a node must go, Ray ends its workers at once. So the replicas get their notice before, and time to commit.
    # Without its brackets, the pattern would match the command line of the shell itself.
    hook = f"pkill -TERM -f '[{REPLICA_PROCESS[0]}]{REPLICA_PROCESS[1:]}'; sleep {NOTICE_S}"
    pod["spec"]["containers"][0]["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", hook]}}}
    place_worker(pod["spec"], shape, platform, replicas.gpus)
    return pod


def submitter_pod(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return the pod that submits the job and follows its log. KubeRay adds the command and the cluster's token."""
    resources = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
    pod = {
        **_common(platform),
        "restartPolicy": "Never",
        "securityContext": POD_SECURITY,
        "containers": [
            {
                "name": "ray-job-submitter",
                "image": platform.image,
                "resources": {"requests": resources, "limits": resources},
                "securityContext": CONTAINER_SECURITY,
            }
        ],
    }
    place_lasting(pod, platform)
    return {"metadata": {"labels": pod_labels(spec, SUBMITTER), "annotations": dict(STAYS)}, "spec": pod}


def _common(platform: Platform) -> dict[str, Any]:
    found: dict[str, Any] = {"automountServiceAccountToken": False}
    if platform.image_pull_secrets:
        found["imagePullSecrets"] = [{"name": name} for name in platform.image_pull_secrets]
    if platform.priority_class is not None:
        found["priorityClassName"] = platform.priority_class
    return found


def _node_disk(limit: str) -> dict[str, Any]:
    return {"emptyDir": {"sizeLimit": limit}}


def _volume(platform: Platform) -> dict[str, Any]:
    """Return a volume that is created and deleted with its pod."""
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": platform.storage_class,
        "resources": {"requests": {"storage": platform.cache_size}},
    }
    return {"ephemeral": {"volumeClaimTemplate": {"spec": claim}}}


def _ray_pod(
    spec: JobSpec,
    platform: Platform,
    container: str,
    resources: dict[str, str],
    grace_s: int,
    cache: dict[str, Any],
) -> dict[str, Any]:
    of_node = size(platform.scratch_size) + size(cache["emptyDir"]["sizeLimit"] if "emptyDir" in cache else "1Gi")
    resources = {**resources, "ephemeral-storage": f"{math.ceil(of_node / 2**30)}Gi"}
    # Ray's object store, and 1 GiB more, because vLLM's processes share little memory.
    shared = math.ceil(size(resources["memory"]) * OBJECT_STORE_SHARE / 2**30) + 1
    return {
        "metadata": {"labels": pod_labels(spec, RAY)},
        "spec": {
            **_common(platform),
            "serviceAccountName": job_name(spec),
            "terminationGracePeriodSeconds": grace_s,
            "securityContext": POD_SECURITY,
            "containers": [_ray_container(platform, container, resources)],
            "volumes": [
                {"name": "job", "configMap": {"name": job_name(spec)}},
                {"name": "cache", **cache},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared}Gi"}},
            ],
        },
    }


def _ray_container(platform: Platform, name: str, resources: dict[str, str]) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": platform.image,
        "resources": {"requests": resources, "limits": resources},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "job", "mountPath": str(Path(SPEC_PATH).parent), "readOnly": True},
            {"name": "cache", "mountPath": "/home/magbatch/.cache"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    if platform.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": platform.secret}}]
    return container
