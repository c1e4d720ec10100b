"""Replicas land on the nodes that the spec prefers, and on no GPU that is too small."""

import re

import pytest
from support.manifests import (
    KUBERAY,
    check,
    cluster_spec,
    platform,
    pods,
    ray_object,
    rendered,
    spec,
)

from magbatch.deploy import Platform, Target, render
from magbatch.errors import SpecError

PREFER = (
    "replicas={min: 0, max: 5, prefer: [{accelerator: H100, market: spot}, {accelerator: A100, labels: {zone: b}}]}",
)


@pytest.mark.parametrize("target", KUBERAY)
def test_each_kind_of_node_that_a_spec_prefers_is_a_group(target: Target) -> None:
    options = platform(accelerators={"A100": "cloud.google.com/gke-accelerator=nvidia-a100-80gb"})
    files = rendered("magistral-text", target, options, *PREFER)
    for manifest in files.values():
        check(manifest)
    first, second = cluster_spec(ray_object(files))["workerGroupSpecs"]
    assert (first["groupName"], second["groupName"]) == ("h100-spot", "a100-b")
    assert first["labels"] == {"ray.io/accelerator-type": "H100", "ray.io/market-type": "spot"}
    assert second["labels"] == {"ray.io/accelerator-type": "A100", "zone": "b"}
    assert first["priority"] > second["priority"]
    pods_of = [group["template"]["spec"] for group in (first, second)]
    assert [pod["nodeSelector"] for pod in pods_of] == [
        {"karpenter.sh/capacity-type": "spot", "karpenter.k8s.aws/instance-gpu-name": "h100"},
        {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb", "zone": "b"},
    ]
    keys = [[toleration["key"] for toleration in pod["tolerations"]] for pod in pods_of]
    assert keys == [["nvidia.com/gpu", "karpenter.sh/capacity-type"], ["nvidia.com/gpu"]]


@pytest.mark.parametrize(
    ("replicas", "target", "options", "said"),
    [
        ("{prefer: [{accelerator: TPU}]}", Target.AWS, platform(), "no known AWS machine has TPU"),
        ("{gpus: 16, prefer: [{accelerator: A100}]}", Target.AWS, platform(), "16 GPUs are more than"),
        ("{prefer: [{accelerator: A100-80G}]}", Target.KUBERAY, platform(), "--accelerator A100-80G=LABEL=VALUE"),
        ("{prefer: [{labels: {a: x}}, {labels: {b: x}}]}", Target.KUBERAY, platform(), "x, x: two entries give"),
        ("{prefer: [{market: spot}]}", Target.KUBERAY, platform(spot=None), "--spot none: replicas.prefer asks for"),
    ],
)  # fmt: skip
def test_nodes_that_are_not_to_be_had_are_named(replicas: str, target: Target, options: Platform, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(said)):
        render(spec("magistral-text", f"replicas={replicas}"), target, options)


def test_on_demand_nodes_are_no_spot_nodes() -> None:
    """Without the rule, Kubernetes could place on-demand pods on spot nodes, and Ray would not know."""
    job = rendered("magistral-text", Target.KUBERAY)["rayjob.yaml"]
    spot, on_demand = (group["template"]["spec"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"])
    terms = on_demand["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    not_spot = {"key": "karpenter.sh/capacity-type", "operator": "NotIn", "values": ["spot"]}
    assert all(not_spot in term["matchExpressions"] for term in terms)
    assert "NotIn" not in str(spot["affinity"])


def test_gpus_are_of_a_known_kind() -> None:
    """Memory as nodes report it, in MiB: an H100 and an A100 of 80 GB fit; a T4, an L4 and an A100 of 40 GB do not."""
    ray = ray_object(rendered("magistral-text", Target.KUBERAY))
    for pod in list(pods(ray))[1:]:
        terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        keys = []
        for term in terms["nodeSelectorTerms"]:
            (least,) = (one for one in term["matchExpressions"] if one["operator"] == "Gt")
            keys.append(least["key"])
            fits = {memory: memory > int(least["values"][0]) for memory in (15360, 23034, 40960, 46068, 81559, 81920)}
            assert [memory for memory, fit in fits.items() if fit] == [81559, 81920]
        assert keys == ["karpenter.k8s.aws/instance-gpu-memory", "nvidia.com/gpu.memory"]


@pytest.mark.parametrize("target", KUBERAY)
@pytest.mark.parametrize("prefer", ["[]", "[{accelerator: H100}, {market: spot}]"])
def test_gpus_of_any_kind_are_refused(target: Target, prefer: str) -> None:
    with pytest.raises(SpecError, match="--gpu-memory-gb is missing"):
        rendered("magistral-text", target, platform(gpu_memory_gb=None), f"replicas.prefer={prefer}")
    rendered("magistral-text", target, platform(gpu_memory_gb=None), "replicas.gpus=0")


def test_one_accelerator_is_the_kind_of_all_groups() -> None:
    options = platform(gpu_memory_gb=None, accelerators={"H100": ""})
    groups = cluster_spec(ray_object(rendered("magistral-text", Target.KUBERAY, options)))["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["h100-spot", "h100-on-demand"]
    for group in groups:
        assert group["template"]["spec"]["nodeSelector"]["karpenter.k8s.aws/instance-gpu-name"] == "h100"
    with pytest.raises(SpecError, match="names none of them"):
        rendered("magistral-text", Target.KUBERAY, platform(accelerators={"H100": "", "A100": ""}))
