"""Who reaches whom: policies by this job's own labels; what Prometheus reads; what may disrupt the head."""

from typing import Any

from magbatch.deploy.forms import LINK_LOCAL, LINK_LOCAL_V6
from magbatch.deploy.names import RAY, SUBMITTER, head_labels, metadata, pod_labels
from magbatch.deploy.platform import DASHBOARD_PORT, METRICS_PORT, Platform
from magbatch.spec import JobSpec


def policies(spec: JobSpec, platform: Platform) -> dict[str, dict[str, Any]]:
    """File names and NetworkPolicies: of the cluster, of its head besides, of the submitter."""
    return {
        "networkpolicy.yaml": _cluster(spec, platform),
        "networkpolicy-head.yaml": _head(spec, platform),
        "networkpolicy-submitter.yaml": _submitter(spec, platform),
    }


def _cluster(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Pods of the cluster reach each other, DNS, and the world but for the metadata service."""
    of_job = _pods(pod_labels(spec, RAY))
    world = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(LINK_LOCAL)}},
        {"ipBlock": {"cidr": "::/0", "except": list(LINK_LOCAL_V6)}},
        *({"ipBlock": {"cidr": network}} for network in platform.allow_egress),
    ]
    rules = {"ingress": [{"from": [of_job]}], "egress": [_dns(), {"to": [of_job]}, {"to": world}]}
    return _policy(spec, platform, "", pod_labels(spec, RAY), rules)


def _head(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """The operator and the submitter reach the dashboard too, and Prometheus the metrics."""
    operator = {
        "namespaceSelector": _namespace(platform.operator_namespace),
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    prometheus = {"namespaceSelector": _namespace(platform.monitoring_namespace)}
    ingress = [
        {"from": [operator, _pods(pod_labels(spec, SUBMITTER))], "ports": [_tcp(DASHBOARD_PORT)]},
        {"from": [prometheus], "ports": [_tcp(METRICS_PORT)]},
    ]
    return _policy(spec, platform, "-head", head_labels(spec), {"ingress": ingress})


def _submitter(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """The submitter reaches the head's dashboard, and is reached by nobody."""
    egress = [_dns(), {"to": [_pods(head_labels(spec))], "ports": [_tcp(DASHBOARD_PORT)]}]
    return _policy(spec, platform, "-submitter", pod_labels(spec, SUBMITTER), {"ingress": [], "egress": egress})


def _policy(
    spec: JobSpec, platform: Platform, suffix: str, pods: dict[str, str], rules: dict[str, list[Any]]
) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(spec, platform, suffix),
        "spec": {
            "podSelector": {"matchLabels": pods},
            "policyTypes": [kind.capitalize() for kind in rules],
            **rules,
        },
    }


def _pods(labels: dict[str, str]) -> dict[str, Any]:
    return {"podSelector": {"matchLabels": labels}}


def _namespace(name: str) -> dict[str, Any]:
    return {"matchLabels": {"kubernetes.io/metadata.name": name}}


def _tcp(port: int) -> dict[str, Any]:
    return {"port": port, "protocol": "TCP"}


def _dns() -> dict[str, Any]:
    """To any address: a node's own resolver is link-local. On this port nobody hands out credentials."""
    return {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def service_account(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Without any right of its own: the operator binds the autoscaler's Role to it."""
    found = metadata(spec, platform)
    if platform.role is not None:
        found["annotations"] = {"eks.amazonaws.com/role-arn": platform.role}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": found, "automountServiceAccountToken": False}


def pod_monitor(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """The driver's metrics, which are those of the whole fleet."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(spec, platform),
        "spec": {
            "selector": {"matchLabels": head_labels(spec)},
            "podMetricsEndpoints": [{"port": "magbatch", "path": "/metrics", "interval": "15s"}],
        },
    }


def disruption_budget(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """The head is not evicted.

    `minAvailable`: Kubernetes takes no `maxUnavailable` for pods whose owner, a RayCluster, has no scale subresource.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(spec, platform, "-head"),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": head_labels(spec)}},
    }
