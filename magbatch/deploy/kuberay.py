"""Objects of KubeRay: RayJob, RayCronJob, and a RayCluster that stays."""

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

RETRIES = 5  # restarts of a driver that was interrupted or killed; each restart resumes the job
RETRY_PAUSE_S = 30  # pause before a restart
SCRIPT_PATH = "/etc/magbatch/run.sh"
# KubeRay takes every exit code except 0 for a failure: without this script, a wrong spec would build new clusters.
SCRIPT = f"""\
#!/bin/sh
# Runs a command; runs it again after exit code 3 (interrupted) or a signal, up to {RETRIES} times.
# Exit codes 0, 1, 2 and 4 are final: the same command would end in the same way. A stopped job is not started again.
# The variable tells the command that no person watches. A passing failure, such as absent storage, then ends it with 3.
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
ELASTIC_ANNOTATION = "kueue.x-k8s.io/elastic-job"  # without it, Kueue refuses an autoscaled cluster


def ray_job(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return a RayJob: one run of the job, in a cluster that is deleted afterwards."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _queued(metadata(spec, platform), platform),
        "spec": _job(spec, platform, f"magbatch run {SPEC_PATH}") | _suspended(platform),
    }


def ray_cluster(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return a RayCluster that stays, for jobs that `magbatch submit` sends to it."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _queued(metadata(spec, platform), platform),
        "spec": cluster(spec, platform) | _suspended(platform),
    }


def cron_job(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return a RayCronJob, which starts a tick at each time of the schedule.

    If the last tick still runs, its lease refuses the new tick. The next tick catches up.

    Raises:
        SpecError: The spec has no schedule.
    """
    if spec.schedule is None:
        raise SpecError('schedule is missing; write schedule: {cron: "0 6 * * *", timezone: Europe/Paris}')
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
    """Return the suspension of a queued job; Kueue lifts it when it is the job's turn."""
    return {} if platform.queue is None else {"suspend": True}


def _job(spec: JobSpec, platform: Platform, command: str) -> dict[str, Any]:
    environment = {**ray_settings.STOP_WAIT, **ray_settings.GPUS_VISIBLE}
    deadline = {} if platform.deadline_s is None else {"activeDeadlineSeconds": platform.deadline_s}
    return {
        "entrypoint": f"sh {SCRIPT_PATH} {command}",
        "runtimeEnvYAML": to_yaml({"env_vars": environment}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": platform.keep_cluster_s,
        # The script retries if that can help. If the head dies, KubeRay's controller replaces it, and the submitter's
        # next attempt sends the job to the new head.
        "backoffLimit": 0,
        "submitterConfig": {"backoffLimit": RETRIES},
        "submitterPodTemplate": submitter_pod(spec, platform),
        **deadline,
        "rayClusterSpec": cluster(spec, platform),
    }


def cluster(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return the `spec` of a RayCluster for a job.

    It holds no GPU until rows wait. Each worker pod has one replica, and the head has none.
    """
    kinds = shapes(spec, platform, memory_known=platform.gpu_memory_gb is not None)
    resources = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
    return {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "token"},  # KubeRay makes the token as a Secret and gives it to each of its pods
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 120,
            "resources": {"requests": resources, "limits": resources},
            "securityContext": CONTAINER_SECURITY,
            "volumeMounts": [token_mount()],
        },
        "headGroupSpec": {
            # With 0 CPUs the head gets no task: rows are read, rendered and answered on workers.
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
        "labels": shape.selector,  # the autoscaler must know the labels before a node exists
        "priority": priority,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": spec.replicas.max,
        "rayStartParams": {},
        "template": worker_pod(spec, platform, shape),
    }
