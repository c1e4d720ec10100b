"""Each field that is written is a field of KubeRay 1.7, and a driver that can go on is started again."""

import copy
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.manifests import (
    KUBERAY,
    cluster_spec,
    crd,
    job_spec,
    platform,
    ray_object,
    rendered,
    spec,
)

from magbatch.deploy import Platform, Target, render
from magbatch.deploy.kuberay import RETRIES, SCRIPT
from magbatch.errors import SpecError


def test_a_schedule_becomes_a_ray_cron_job() -> None:
    job = rendered("magistral-text", Target.CRON)["raycronjob.yaml"]
    assert (job["spec"]["schedule"], job["spec"]["timeZone"]) == ("0 6 * * *", "Europe/Paris")
    assert (
        job["spec"]["jobTemplate"]["entrypoint"]
        == "sh /etc/magbatch/run.sh magbatch schedule tick /etc/magbatch/job.yaml"
    )
    with pytest.raises(SpecError, match="schedule is missing"):
        render(spec(), Target.CRON, platform())


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


TEXT = "jobs/magistral-text.yaml"


@pytest.mark.parametrize("target", [Target.KUBERAY, Target.CLUSTER])
def test_a_queued_job_waits_for_kueue(target: Target) -> None:
    ray = ray_object(rendered("magistral-text", target, platform(queue="team-a")))
    assert ray["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert ray["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}, "its nodes come and go"
    assert (ray["spec"]["suspend"], cluster_spec(ray)["enableInTreeAutoscaling"]) == (True, True)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script of the manifests, and a command that ends with the codes that are in a file, one a start."""
    (tmp_path / "run.sh").write_text(SCRIPT)
    (tmp_path / "job.sh").write_text(
        'echo started >> starts\ncode=$(sed -n "$(wc -l < starts)p" codes)\n'
        '[ "$code" = wait ] && sleep 60\nexit $code\n'
    )
    return tmp_path


@pytest.mark.parametrize(
    ("codes", "end", "starts"),
    [
        ("0", 0, 1),
        ("1", 1, 1),  # too many dead letters
        ("2", 2, 1),  # a wrong spec
        ("4", 4, 1),
        ("3 0", 0, 2),  # interrupted, gone on
        ("137 3 1", 1, 3),
        ("3 3 3 3 3 3 0", 3, RETRIES + 1),
    ],
)
def test_a_run_that_can_go_on_is_started_again(script: Path, codes: str, end: int, starts: int) -> None:
    (script / "codes").write_text("\n".join(codes.split()) + "\n")
    done = subprocess.run(
        ["sh", "run.sh", "sh", "job.sh"], cwd=script, check=False, capture_output=True, text=True,
        env=os.environ | {"RETRY_PAUSE_S": "0"},
    )  # fmt: skip
    assert done.returncode == end, done.stderr
    assert len((script / "starts").read_text().splitlines()) == starts
    assert done.stderr.count("run.sh: exit code") == starts - 1


def test_a_run_is_told_that_nobody_looks_on(script: Path) -> None:
    done = subprocess.run(
        ["sh", "run.sh", "printenv", "MAGBATCH_UNATTENDED"], cwd=script, check=True, capture_output=True, text=True
    )
    assert done.stdout == "1\n"


def test_a_run_that_is_stopped_is_not_started_again(script: Path) -> None:
    """Ray sends the signal to the entrypoint and to all that it started."""
    (script / "codes").write_text("wait\n0\n")
    with subprocess.Popen(
        ["sh", "run.sh", "sh", "job.sh"], cwd=script, start_new_session=True, env=os.environ | {"RETRY_PAUSE_S": "0"}
    ) as process:
        while not (script / "starts").exists():
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert (script / "starts").read_text() == "started\n"


@pytest.mark.parametrize("target", [Target.KUBERAY, Target.CRON])
def test_kuberay_builds_no_second_cluster_for_an_end_that_is_final(target: Target) -> None:
    files = rendered("magistral-text", target)
    job = job_spec(ray_object(files))
    assert job["backoffLimit"] == 0
    assert job["entrypoint"].startswith("sh /etc/magbatch/run.sh magbatch ")
    assert files["configmap.yaml"]["data"]["run.sh"] == SCRIPT
    assert not re.search(r"[;&|$`'\"]", job["entrypoint"]), "KubeRay pastes it into a shell"


@pytest.mark.parametrize("target", KUBERAY)
def test_a_cluster_on_kubernetes_asks_for_a_token(target: Target) -> None:
    assert cluster_spec(ray_object(rendered("magistral-text", target)))["authOptions"] == {"mode": "token"}
