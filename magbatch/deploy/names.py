"""Names and labels of rendered objects. Different jobs have different ones."""

import hashlib
from typing import Any

from magbatch.deploy.platform import Platform
from magbatch.spec import JobSpec

MAX_NAME = 35  # a RayJob may have 47 characters; the rest is for suffixes
NAME_HASH = 8
RAY = "ray"  # component label of the pods of the Ray cluster
SUBMITTER = "submitter"  # component label of the pod that sends the job to the cluster


def job_name(spec: JobSpec) -> str:
    """Return the name of a job in Kubernetes. KubeRay appends a time to it, and names Services after it.

    If the spec's name had to be changed or cut, a hash of the whole name is appended. So different jobs keep different
    names.
    """
    name = spec.name.lower().replace(".", "-").replace("_", "-").strip("-")
    name = name if name[:1].isalpha() else f"job-{name}"
    if name == spec.name and len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(spec.name.encode()).hexdigest()[:NAME_HASH]
    return f"{name[: MAX_NAME - NAME_HASH - 1].strip('-')}-{digest}"


def metadata(spec: JobSpec, platform: Platform, suffix: str = "") -> dict[str, Any]:
    """Return name, namespace and labels of an object of the job."""
    found: dict[str, Any] = {"name": job_name(spec) + suffix}
    if platform.namespace is not None:
        found["namespace"] = platform.namespace
    return found | {"labels": {"app.kubernetes.io/name": "magbatch", "app.kubernetes.io/instance": job_name(spec)}}


def pod_labels(spec: JobSpec, component: str) -> dict[str, str]:
    """Return labels that only the pods of one component of the job have.

    `app.kubernetes.io/name` is left out, because KubeRay sets it: its Services find the head by that label.
    """
    return {
        "app.kubernetes.io/instance": job_name(spec),
        "app.kubernetes.io/part-of": "magbatch",
        "app.kubernetes.io/component": component,
    }


def head_labels(spec: JobSpec) -> dict[str, str]:
    """Return labels that only the head has among the pods of the job."""
    return {**pod_labels(spec, RAY), "ray.io/node-type": "head"}
