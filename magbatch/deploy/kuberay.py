"""KubeRay's objects: RayJob, RayCronJob, and a RayCluster that stays."""

from typing import Any

from magbatch import guard
from magbatch.deploy.names import metadata
from magbatch.deploy.nodes import group_name, shapes
from magbatch.deploy.platform import RAY_VERSION, SPEC_PATH, Platform
from magbatch.deploy.pods import CONTAINER_SECURITY, head_pod, submitter_pod, token_mount, worker_pod
from magbatch.deploy.text import to_yaml
from magbatch.errors import SpecError
from magbatch.fleet import ray_settings
from magbatch.spec import JobSpec, ShapeSpec

RETRIES = 5  # a driver that was interrupted or killed is started again, and goes on where it was
RETRY_PAUSE_S = 30
SCRIPT_PATH = "/etc/magbatch/run.sh"
# KubeRay counts every end but 0 as a failure, and would build the cluster again for a spec that is wrong.
SCRIPT = f"""\
#!/bin/sh
# Runs a command; runs it again after exit code 3 (interrupted) or a signal, up to {RETRIES} times.
# 0, 1, 2 and 4 are final: the same command would end as it did. A job that is stopped is not started again.
# The variable tells the command that no person looks on: what may pass, such as a store that is away, ends it with 3.
export {guard.UNATTENDED}=1
stopped=
trap 'stopped=1' TERM INT
retries=0
while :; do
    "$@"
    code=$?
    if [ "$code" -ne 3 ] && [ "$code" -lt 128 ]; then exit "$code"; fi
    if [ -n "$stopped" ] || [ "$retries" -ge {RETRIES} ]; then exit "$code"; fi
    retries=$((retries + 1))
    echo "run.sh: exit code $code; retry $retries of {RETRIES} in ${{RETRY_PAUSE_S:-{RETRY_PAUSE_S}}} s" >&2
    sleep "${{RETRY_PAUSE_S:-{RETRY_PAUSE_S}}}"
    if [ -n "$stopped" ]; then exit "$code"; fi
done
"""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
ELASTIC_ANNOTATION = "kueue.x-k8s.io/elastic-job"  # Kueue takes no autoscaled cluster without it


def ray_job(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """One run of the job, in a cluster that goes after it."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _queued(metadata(spec, platform), platform),
        "spec": _job(spec, platform, f"magbatch run {SPEC_PATH}") | _suspended(platform),
    }


def ray_cluster(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """A cluster that stays, for jobs that are sent to it by `magbatch submit`."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _queued(metadata(spec, platform), platform),
        "spec": cluster(spec, platform) | _suspended(platform),
    }


def cron_job(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """A tick that comes while the last one works is refused by its lease, and caught up with by the next.

    Raises:
        SpecError: The spec has no schedule.
    """
    if spec.schedule is None:
        raise SpecError('schedule: is missing; write schedule: {cron: "0 6 * * *", timezone: Europe/Paris}')
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": metadata(spec, platform),
        "spec": {
            "schedule": spec.schedule.cron,
            "timeZone": spec.schedule.timezone,
            "suspend": False,
            "jobTemplate": _job(spec, platform, f"magbatch schedule tick {SPEC_PATH}"),
        },
    }


def _queued(found: dict[str, Any], platform: Platform) -> dict[str, Any]:
    if platform.queue is not None:
        found["labels"][QUEUE_LABEL] = platform.queue
        found["annotations"] = {ELASTIC_ANNOTATION: "true"}
    return found


def _suspended(platform: Platform) -> dict[str, Any]:
    """Kueue ends the suspension when the job's turn comes."""
    return {} if platform.queue is None else {"suspend": True}


def _job(spec: JobSpec, platform: Platform, command: str) -> dict[str, Any]:
    environment = {**ray_settings.STOP_WAIT, **ray_settings.GPUS_VISIBLE}
    deadline = {} if platform.deadline_s is None else {"activeDeadlineSeconds": platform.deadline_s}
    return {
        "entrypoint": f"sh {SCRIPT_PATH} {command}",
        "runtimeEnvYAML": to_yaml({"env_vars": environment}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": platform.keep_cluster_s,
        # The script tries again where that can help. A head that dies is replaced by the cluster's controller,
        # and the next try of the submitter sends the job to it.
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": RETRIES},
        "submitterPodTemplate": submitter_pod(spec, platform),
        **deadline,
        "rayClusterSpec": cluster(spec, platform),
    }


def cluster(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """The `spec` of a RayCluster that a job fits: no GPU until rows wait, one replica in a pod, none on the head."""
    kinds = shapes(spec, platform, memory_known=platform.gpu_memory_gb is not None)
    resources = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},  # KubeRay makes the token, a Secret, and hands it to each of its pods
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 120,
            "resources": {"requests": resources, "limits": resources},
            "securityContext": CONTAINER_SECURITY,
            "volumeMounts": [token_mount()],
        },
        "headGroupSpec": {
            # Without CPUs no task is placed there: rows are read, rendered and answered on workers.
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
            "template": head_pod(spec, platform),
        },
        "workerGroupSpecs": [
            _worker_group(spec, platform, shape, len(kinds) - number) for number, shape in enumerate(kinds)
        ],
    }


def _worker_group(spec: JobSpec, platform: Platform, shape: ShapeSpec, priority: int) -> dict[str, Any]:
    return {
        "groupName": group_name(shape),
        "labels": shape.selector,  # the autoscaler must know them before there is a node
        "priority": priority,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": spec.replicas.max,
        "rayStartParams": {},
        "template": worker_pod(spec, platform, shape),
    }
