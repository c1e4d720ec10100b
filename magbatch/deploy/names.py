"""Names and labels of what is rendered: those of one job, and of no other."""

import hashlib
from typing import Any

from magbatch.deploy.platform import Platform
from magbatch.spec import JobSpec

MAX_NAME = 35  # of 47 that a RayJob may have
NAME_HASH = 8
RAY = "ray"  # components of a job: the pods of its Ray cluster
SUBMITTER = "submitter"  # and the pod that sends it there


def job_name(spec: JobSpec) -> str:
    """A name that Kubernetes takes for all that is made of it: KubeRay adds a time to it, and names Services by it.

    Different jobs have different names: a hash of the whole name ends one that had to be changed or cut.
    """
    name = spec.name.lower().replace(".", "-").replace("_", "-").strip("-")
    name = name if name[:1].isalpha() else f"job-{name}"
    if name == spec.name and len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(spec.name.encode()).hexdigest()[:NAME_HASH]
    return f"{name[: MAX_NAME - NAME_HASH - 1].strip('-')}-{digest}"


def metadata(spec: JobSpec, platform: Platform, suffix: str = "") -> dict[str, Any]:
    """Name, namespace and labels of an object of the job."""
    found: dict[str, Any] = {"name": job_name(spec) + suffix}
    if platform.namespace is not None:
        found["namespace"] = platform.namespace
    return found | {"labels": {"app.kubernetes.io/name": "magbatch", "app.kubernetes.io/instance": job_name(spec)}}


def pod_labels(spec: JobSpec, component: str) -> dict[str, str]:
    """Labels that the pods of one component of the job have, and no other pod.

    `app.kubernetes.io/name` is not among them: KubeRay's Services find the head by its own value of it.
    """
    return {
        "app.kubernetes.io/instance": job_name(spec),
        "app.kubernetes.io/part-of": "magbatch",
        "app.kubernetes.io/component": component,
    }


def head_labels(spec: JobSpec) -> dict[str, str]:
    """Labels of the head alone, among the pods of the job."""
    return {**pod_labels(spec, RAY), "ray.io/node-type": "head"}
