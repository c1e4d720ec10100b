"""Pods reach what they need and nothing else, and the head is not evicted."""

import ipaddress
import json
from typing import Any

import pytest
from support.manifests import (
    KUBERAY,
    check,
    job_spec,
    platform,
    pods,
    ray_object,
    rendered,
)

from magbatch.deploy import Target

INSTANCE = {"app.kubernetes.io/instance": "contracts-november", "app.kubernetes.io/part-of": "magbatch"}


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("target", KUBERAY)
def test_nobody_but_the_job_its_operator_and_prometheus_gets_in(target: Target) -> None:
    files = rendered("magistral-text", target, platform(operator_namespace="ops", monitoring_namespace="watch"))
    ray = ray_object(files)
    policies = {name: one["spec"] for name, one in files.items() if one["kind"] == "NetworkPolicy"}
    assert set(policies) == {"networkpolicy.yaml", "networkpolicy-head.yaml"} | (
        set() if target == Target.CLUSTER else {"networkpolicy-submitter.yaml"}
    )
    head, worker, *_ = ({**pod["metadata"]["labels"]} for pod in pods(ray))
    head["ray.io/node-type"], worker["ray.io/node-type"] = "head", "worker"  # as KubeRay adds them
    cluster, of_head = policies["networkpolicy.yaml"], policies["networkpolicy-head.yaml"]
    assert all(selects(cluster["podSelector"], pod) for pod in (head, worker))
    assert (selects(of_head["podSelector"], head), selects(of_head["podSelector"], worker)) == (True, False)
    peers = [
        (peer, rule.get("ports")) for one in (cluster, of_head) for rule in one["ingress"] for peer in rule["from"]
    ]
    for peer, ports in peers:
        if "namespaceSelector" in peer:
            (namespace,) = peer["namespaceSelector"]["matchLabels"].values()
            expected = {"ops": ([8265], True), "watch": ([9480], False)}[namespace]
            assert ([port["port"] for port in ports], "podSelector" in peer) == expected
        else:
            assert peer["podSelector"]["matchLabels"].items() > INSTANCE.items(), "its own labels, all of them"
    other_job = {**worker, "app.kubernetes.io/instance": "payroll"}
    any_job = {"batch.kubernetes.io/job-name": "x", "app.kubernetes.io/name": "kuberay-operator"}
    own = [peer["podSelector"] for peer, _ in peers if "namespaceSelector" not in peer]
    assert not any(selects(selector, pod) for selector in own for pod in (other_job, any_job))
    if target != Target.CLUSTER:
        submitter = job_spec(ray)["submitterPodTemplate"]["metadata"]["labels"]
        assert any(selects(selector, submitter) for selector in own)
        assert not selects(cluster["podSelector"], submitter)
        assert selects(policies["networkpolicy-submitter.yaml"]["podSelector"], submitter)
        assert policies["networkpolicy-submitter.yaml"]["ingress"] == []
        assert not any("ipBlock" in json.dumps(rule) for rule in policies["networkpolicy-submitter.yaml"]["egress"])


def reaches(policy: dict[str, Any], address: str, port: int) -> bool:
    """Whether a policy lets its pods reach an address outside the cluster."""
    target = ipaddress.ip_address(address)
    for rule in policy["egress"]:
        if port not in [one["port"] for one in rule.get("ports", [{"port": port}])]:
            continue
        if "to" not in rule:
            return True
        for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
            out = [ipaddress.ip_network(one) for one in block.get("except", [])]
            if target in ipaddress.ip_network(block["cidr"]) and not any(target in one for one in out):
                return True
    return False


@pytest.mark.parametrize(
    ("address", "port", "goes"),
    [
        ("169.254.169.254", 80, False),  # the node's own credentials, on every cloud
        ("169.254.170.2", 80, False),
        ("fd00:ec2::254", 80, False),
        ("169.254.170.23", 80, False),  # EKS Pod Identity: by --allow-egress alone
        ("169.254.20.10", 53, True),  # a node's own resolver
        ("52.216.8.1", 443, True),
        ("10.0.7.9", 443, True),  # an S3 endpoint within the network, the Kubernetes API
        ("2600:1fa0::1", 443, True),
    ],
)
@pytest.mark.parametrize("target", KUBERAY)
def test_pods_reach_the_world_without_the_metadata_of_their_node(
    target: Target, address: str, port: int, goes: bool
) -> None:
    assert reaches(rendered("magistral-text", target)["networkpolicy.yaml"]["spec"], address, port) is goes


def test_pod_identity_is_let_out_where_it_is_asked_for() -> None:
    policy = rendered("magistral-text", Target.KUBERAY, platform(allow_egress=("169.254.170.23/32",)))
    assert reaches(policy["networkpolicy.yaml"]["spec"], "169.254.170.23", 80)
    assert not reaches(policy["networkpolicy.yaml"]["spec"], "169.254.169.254", 80)
    check(policy["networkpolicy.yaml"])
