"""Pods are restricted, leave time to commit, and have the room that they need."""

import re
from typing import Any

import pytest
import yaml
from support.manifests import (
    KUBERAY,
    ROOT,
    all_pods,
    check,
    check_pod,
    cluster_spec,
    job_spec,
    platform,
    pods,
    ray_object,
    rendered,
)

from magbatch.deploy import Target
from magbatch.replica.timing import Timing


def test_a_node_that_goes_leaves_time_to_commit() -> None:
    job = rendered("magistral-text", Target.KUBERAY)["rayjob.yaml"]
    _, *workers = pods(job)
    for pod in workers:
        (command,) = (c["lifecycle"]["preStop"]["exec"]["command"] for c in pod["spec"]["containers"])
        before, _, rest = command[-1].partition("; ")
        notice_s = Timing().notice_s
        assert (before, rest) == ("pkill -TERM -f '[M]apWorker'", f"sleep {notice_s:g}"), "what replicas count on"
        pattern = before.split("'")[1]
        assert re.search(pattern, "ray::MapWorker(MapBatches(_Worker))")
        assert not re.search(pattern, " ".join(command)), "it would end the shell that is to wait"
        assert pod["spec"]["terminationGracePeriodSeconds"] > notice_s
    assert "RAY_JOB_STOP_WAIT_TIME_S" in yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_images_run_as_the_user_that_the_pods_ask_for(kind: str) -> None:
    lines = (ROOT / f"deploy/Dockerfile.{kind}").read_text().splitlines()
    assert "USER 1000" in lines
    (base,) = (line for line in lines if line.startswith("ARG BASE="))
    assert re.fullmatch(r"ARG BASE=\S+:\d+\.\d+\.\d+\S*", base), "pinned"
    assert any("procps" in line for line in lines), "the preStop hook needs pkill"
    assert any("fonts-wqy-microhei" in line for line in lines if "install" in line), "as the README says"
    (profile,) = (line for line in lines if line.endswith("> /etc/profile.d/magbatch.sh"))
    assert "/opt/magbatch/.venv/bin:$PATH" in profile, "Ray's launcher runs login shells"


@pytest.mark.parametrize("target", KUBERAY)
def test_options_are_where_they_belong(target: Target) -> None:
    of_job: dict[str, Any] = {} if target == Target.CLUSTER else {"deadline_s": 3600, "keep_cluster_s": 0}
    options = platform(
        namespace="team", image_pull_secrets=("a", "b"), priority_class="batch", zone="eu-west-1a", worker_cpu="6",
        worker_memory="100Gi", head_cpu="2", head_memory="8Gi", **of_job,
    )  # fmt: skip
    files = rendered("magistral-text", target, options)
    for name, manifest in files.items():
        check(manifest)
        assert name == "kustomization.yaml" or manifest["metadata"]["namespace"] == "team"
    ray = ray_object(files)
    for pod in all_pods(ray):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
        assert pod["spec"]["priorityClassName"] == "batch"
        assert pod["spec"]["nodeSelector"]["topology.kubernetes.io/zone"] == "eu-west-1a"
    head, worker, *_ = (pod["spec"]["containers"][0]["resources"]["requests"] for pod in pods(ray))
    assert (head["cpu"], head["memory"], worker["cpu"], worker["memory"]) == ("2", "8Gi", "6", "100Gi")
    if of_job:
        job = job_spec(ray)
        assert (job["activeDeadlineSeconds"], job["ttlSecondsAfterFinished"]) == (3600, 0)


INSTANCE = {"app.kubernetes.io/instance": "contracts-november", "app.kubernetes.io/part-of": "magbatch"}

VOLUMES = {"configMap", "emptyDir", "ephemeral", "projected", "secret", "downwardAPI", "persistentVolumeClaim", "csi"}


def restricted(pod: dict[str, Any], *more: dict[str, Any]) -> list[str]:
    """Violations of the "restricted" profile of Pod Security by a pod, and by containers that KubeRay adds."""
    wrong = [name for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name)]
    of_pod = pod.get("securityContext", {})
    if of_pod.get("runAsNonRoot") is not True or of_pod.get("runAsUser") == 0:
        wrong.append("runAsNonRoot")
    if of_pod.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
        wrong.append("seccompProfile")
    wrong += [f"volume {one['name']}" for one in pod.get("volumes", []) if not (one.keys() - {"name"}) <= VOLUMES]
    for container in [*pod["containers"], *pod.get("initContainers", []), *more]:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            wrong.append("allowPrivilegeEscalation")
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            wrong.append("capabilities")
        if any(port.get("hostPort") for port in container.get("ports", [])):
            wrong.append("hostPort")
    return wrong


@pytest.mark.parametrize("target", KUBERAY)
@pytest.mark.parametrize("options", [platform(), platform(secret="hf", storage_class="gp3", spot=None, zone="b")])
def test_every_container_is_within_the_restricted_profile(target: Target, options: Any) -> None:
    ray = ray_object(rendered("magistral-text", target, options))
    sidecar = cluster_spec(ray)["autoscalerOptions"]  # KubeRay's container, with these fields over its own
    found = list(all_pods(ray))
    assert len(found) >= (2 if target == Target.CLUSTER else 3)
    for number, pod in enumerate(found):
        check_pod(pod)
        assert restricted(pod["spec"], *([sidecar] if number == 0 else [])) == []
        for container in pod["spec"]["containers"]:
            assert {"cpu", "memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
    assert {"cpu", "memory"} <= sidecar["resources"]["limits"].keys()


@pytest.mark.parametrize("target", KUBERAY)
def test_the_autoscaler_alone_has_the_token_of_kubernetes(target: Target) -> None:
    files = rendered("magistral-text", target)
    ray = ray_object(files)
    assert files["serviceaccount.yaml"]["automountServiceAccountToken"] is False
    head, *others = all_pods(ray)
    for pod in (head, *others):
        assert pod["spec"]["automountServiceAccountToken"] is False
        mounted = {mount["name"] for one in pod["spec"]["containers"] for mount in one.get("volumeMounts", [])}
        assert "kubernetes-token" not in mounted
    (volume,) = (one for one in head["spec"]["volumes"] if "projected" in one)
    assert [list(source) for source in volume["projected"]["sources"]] == [
        ["serviceAccountToken"], ["configMap"], ["downwardAPI"],
    ]  # fmt: skip
    (mount,) = cluster_spec(ray)["autoscalerOptions"]["volumeMounts"]
    from ray.autoscaler._private.kuberay import node_provider

    assert mount["name"] == volume["name"]
    assert f"{mount['mountPath']}/token" == node_provider.IN_CLUSTER_TOKEN_PATH
    assert f"{mount['mountPath']}/ca.crt" == node_provider.IN_CLUSTER_CA_CERT_PATH
    assert not any("projected" in one for pod in others for one in pod["spec"].get("volumes", []))


@pytest.mark.parametrize("target", KUBERAY)
@pytest.mark.parametrize("gpus", [0, 1])
def test_the_head_runs_no_rows_and_is_left_alone(target: Target, gpus: int) -> None:
    files = rendered("magistral-text", target, None, f"replicas.gpus={gpus}")
    ray = ray_object(files)
    assert cluster_spec(ray)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    head, *workers = pods(ray)
    lasting = [head, *([job_spec(ray)["submitterPodTemplate"]] if target != Target.CLUSTER else [])]
    for pod in lasting:
        (term,) = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        assert term["matchExpressions"] == [
            {"key": "karpenter.sh/capacity-type", "operator": "NotIn", "values": ["spot"]}
        ]
        assert pod["metadata"]["annotations"] == {
            "karpenter.sh/do-not-disrupt": "true",
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        }
    for pod in workers:
        assert "annotations" not in pod["metadata"], "spot nodes may go: replicas commit what is finished"
        assert int(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"]) > 1, "a replica and its readers"
    budget = files["poddisruptionbudget.yaml"]["spec"]
    assert budget["minAvailable"] == 1
    assert budget["selector"]["matchLabels"].items() >= {**INSTANCE, "ray.io/node-type": "head"}.items()


def test_the_models_files_have_a_volume_of_a_size() -> None:
    own, claimed = (
        list(pods(ray_object(rendered("magistral-text", Target.KUBERAY, options))))[1]["spec"]
        for options in (platform(), platform(storage_class="gp3", cache_size="200Gi", scratch_size="20Gi"))
    )
    volumes = [{volume["name"]: volume for volume in pod["volumes"]} for pod in (own, claimed)]
    assert volumes[0]["cache"]["emptyDir"] == {"sizeLimit": "100Gi"}
    assert volumes[1]["cache"]["ephemeral"]["volumeClaimTemplate"]["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "gp3",
        "resources": {"requests": {"storage": "200Gi"}},
    }
    disks = [pod["containers"][0]["resources"]["requests"]["ephemeral-storage"] for pod in (own, claimed)]
    assert disks == ["150Gi", "21Gi"], "the node's disk holds the model, or not"
    assert volumes[0]["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "21Gi"}, "Ray's store, 0.3 of 64Gi"
