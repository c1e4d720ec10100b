"""Manifests rendered from the jobs of this project, and their check against schemas."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from magbatch.deploy import Platform, Target, render
from magbatch.spec import JobSpec, load

ROOT = Path(__file__).parents[2]
CRDS = "MAGBATCH_KUBERAY_CRDS"  # a folder with KubeRay 1.7's CustomResourceDefinitions, a YAML file each
KUBERNETES = "1.34"
IMAGE = "registry.example/magbatch:0.2.0-gpu"
SCHEDULE = ['schedule={cron: "0 6 * * *", timezone: Europe/Paris}', "input.incremental=true"]
KUBERAY = [Target.KUBERAY, Target.CLUSTER, Target.CRON]


def platform(**options: Any) -> Platform:
    """A platform with the options that have no default."""
    return Platform(**({"image": IMAGE, "gpu_memory_gb": 80} | options))


@functools.cache  # schemas and models are read
def spec(job: str = "magistral-text", *overrides: str) -> JobSpec:
    return load(str(ROOT / f"jobs/{job}.yaml"), list(overrides))


def rendered(job: str, target: Target, options: Platform | None = None, *overrides: str) -> dict[str, Any]:
    """File name to manifest."""
    wanted = [*overrides, *(SCHEDULE if target == Target.CRON else [])]
    files = render(spec(job, *wanted), target, options or platform())
    return {name: yaml.safe_load(text) for name, text in files.items()}


def ray_object(files: dict[str, Any]) -> dict[str, Any]:
    (found,) = (manifest for manifest in files.values() if manifest["apiVersion"] == "ray.io/v1")
    return found


def job_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    """The `spec` of a RayJob, or that which a RayCronJob makes them of."""
    return manifest["spec"].get("jobTemplate", manifest["spec"])


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    job = job_spec(manifest)
    return job.get("rayClusterSpec", job)


def pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The head's template, then those of the workers."""
    cluster = cluster_spec(manifest)
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]


def all_pods(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Pod templates of the cluster, and of the submitter if there is one."""
    yield from pods(manifest)
    if "submitterPodTemplate" in job_spec(manifest):
        yield job_spec(manifest)["submitterPodTemplate"]


def strict(node: Any) -> Any:
    """A CRD's schema as the API server holds an object against it: no unknown field, defaults filled in."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: strict(value) for key, value in node.items()}
    if node.pop("x-kubernetes-int-or-string", False):
        return {"type": ["integer", "string"]}
    properties = node.get("properties")
    if isinstance(properties, dict):
        if not node.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in node:
            node["additionalProperties"] = False
        required = node.get("required")
        if isinstance(required, list):
            node["required"] = [name for name in required if "default" not in properties.get(name, {})]
    return node


@functools.cache  # read in a second or two
def crd(kind: str) -> jsonschema.Draft202012Validator:
    """KubeRay's own schema of a kind. Skips the test where the schemas are not given."""
    folder = os.environ.get(CRDS)
    if folder is None:
        pytest.skip(f"KubeRay's schemas are not given: set {CRDS} to a folder of its CustomResourceDefinitions")
    for path in sorted(Path(folder).glob("*.yaml")):
        definition = yaml.load(path.read_text(), yaml.CSafeLoader)
        if definition["spec"]["names"]["kind"] == kind:
            (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            return jsonschema.Draft202012Validator(schema)
    raise FileNotFoundError(f"{CRDS}={folder}: no definition of {kind}")


def check(manifest: dict[str, Any]) -> None:
    """Raises where the API server would refuse a manifest of Kubernetes' own kinds."""
    if not manifest["apiVersion"].startswith("ray.io/") and manifest["kind"] not in {"Kustomization", "PodMonitor"}:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def check_pod(template: dict[str, Any]) -> None:
    """Raises where the API server would refuse a pod of a template."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
