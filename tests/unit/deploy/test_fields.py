"""Every field of KubeRay that is written is one that KubeRay 1.7 has, by a table here and by its own schemas."""

import copy
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from support.manifests import KUBERAY, crd, platform, ray_object, rendered

from magbatch.deploy import Platform, Target

LABELS = "labels, of any name"
POD = "a pod template, held against Kubernetes' own schema"
RESOURCES = "requests and limits"
CLUSTER: dict[str, Any] = {
    "rayVersion": str,
    "authOptions.mode": str,
    "enableInTreeAutoscaling": bool,
    "suspend": bool,
    "autoscalerOptions.version": str,
    "autoscalerOptions.idleTimeoutSeconds": int,
    "autoscalerOptions.resources": RESOURCES,
    "autoscalerOptions.securityContext.allowPrivilegeEscalation": bool,
    "autoscalerOptions.securityContext.capabilities.drop[]": str,
    "autoscalerOptions.volumeMounts[].name": str,
    "autoscalerOptions.volumeMounts[].mountPath": str,
    "autoscalerOptions.volumeMounts[].readOnly": bool,
    "headGroupSpec.rayStartParams": LABELS,
    "headGroupSpec.template": POD,
    "workerGroupSpecs[].groupName": str,
    "workerGroupSpecs[].labels": LABELS,
    "workerGroupSpecs[].priority": int,
    "workerGroupSpecs[].replicas": int,
    "workerGroupSpecs[].minReplicas": int,
    "workerGroupSpecs[].maxReplicas": int,
    "workerGroupSpecs[].rayStartParams": LABELS,
    "workerGroupSpecs[].template": POD,
}
JOB: dict[str, Any] = {
    "entrypoint": str,
    "runtimeEnvYAML": str,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "suspend": bool,
    "submitterConfig.backoffLimit": int,
    "submitterPodTemplate": POD,
    **{f"rayClusterSpec.{name}": kind for name, kind in CLUSTER.items()},
}
FIELDS: dict[str, dict[str, Any]] = {
    "RayCluster": CLUSTER,
    "RayJob": JOB,
    "RayCronJob": {
        "schedule": str,
        "timeZone": str,
        "suspend": bool,
        **{f"jobTemplate.{name}": kind for name, kind in JOB.items()},
    },
}
PLATFORMS = [
    platform(),
    platform(spot=None, role="arn:aws:iam::123456789012:role/x", secret="hf", storage_class="gp3", zone="z"),
]


def leaves(node: Any, known: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of every field, down to those that the table has as a whole."""
    if isinstance(known.get(path), str):
        yield path, node
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from leaves(value, known, f"{path}.{name}" if path else name)
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value, known, f"{path}[]")
    else:
        yield path, node


def unknown(manifest: dict[str, Any]) -> list[str]:
    """Fields that the table does not have, or has of another type."""
    known = FIELDS[manifest["kind"]]
    found = []
    for path, value in leaves(manifest["spec"], known):
        kind = known.get(path)
        fits = isinstance(value, dict) if isinstance(kind, str) else kind is type(value)
        if not fits:
            found.append(f"{path}: {value!r}")
    return found


@pytest.mark.parametrize("target", KUBERAY)
@pytest.mark.parametrize("options", PLATFORMS)
def test_fields_are_those_of_the_table(target: Target, options: Platform) -> None:
    assert unknown(ray_object(rendered("magistral-text", target, options))) == []


def test_the_table_has_the_options_of_one_target_too() -> None:
    queued = ray_object(rendered("magistral-text", Target.KUBERAY, platform(queue="team-a", deadline_s=60)))
    assert unknown(queued) == []
    assert (queued["spec"]["suspend"], queued["spec"]["activeDeadlineSeconds"]) == (True, 60)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rayClusterSpecs", {"a": 1}),
        ("entryPoint", "x"),
        ("backoffLimit", "5"),
        ("rayClusterSpec.authOptions.token", "x"),
        ("suspend", 1),
    ],
)
def test_the_table_refuses_what_kuberay_would(path: str, value: Any) -> None:
    manifest = copy.deepcopy(ray_object(rendered("magistral-text", Target.KUBERAY)))
    node, *names = manifest["spec"], *path.split(".")
    for name in names[:-1]:
        node = node[name]
    node[names[-1]] = value
    assert [found.partition(":")[0] for found in unknown(manifest)] == [f"{path}.a" if value == {"a": 1} else path]


@pytest.mark.parametrize("target", KUBERAY)
@pytest.mark.parametrize("options", PLATFORMS)
@pytest.mark.parametrize("job", ["magistral-text", "magistral-documents"])
def test_kuberays_own_schemas_take_the_manifests(job: str, target: Target, options: Platform) -> None:
    manifest = ray_object(rendered(job, target, options))
    crd(manifest["kind"]).validate(manifest)


def test_kuberays_own_schemas_take_every_option() -> None:
    options = platform(
        queue="a", deadline_s=60, namespace="n", image_pull_secrets=("r",), priority_class="p", storage_class="gp3"
    )
    for target in (Target.KUBERAY, Target.CLUSTER):
        chosen = options if target == Target.KUBERAY else platform(queue="a", namespace="n")
        manifest = ray_object(rendered("magistral-text", target, chosen))
        crd(manifest["kind"]).validate(manifest)


@pytest.mark.parametrize("wrong", ["rayClusterSpecs", "entryPoint"])
def test_kuberays_own_schemas_refuse_unknown_fields(wrong: str) -> None:
    manifest = copy.deepcopy(ray_object(rendered("magistral-text", Target.KUBERAY)))
    crd("RayJob").validate(manifest)
    manifest["spec"][wrong] = {}
    with pytest.raises(jsonschema.ValidationError, match=wrong):
        crd("RayJob").validate(manifest)


@pytest.mark.parametrize("kind", list(FIELDS))
def test_the_table_says_what_kuberays_own_schemas_say(kind: str) -> None:
    types = {str: "string", bool: "boolean", int: "integer"}
    schema = crd(kind).schema["properties"]["spec"]
    for path, expected in FIELDS[kind].items():
        node = schema
        for name in path.replace("[]", ".[]").split("."):
            node = node["items"] if name == "[]" else node["properties"][name]
        assert node["type"] == ("object" if isinstance(expected, str) else types[expected]), path
