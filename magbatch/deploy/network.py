"""Network policies, the service account, the metrics monitor and the disruption budget of a job."""

from typing import Any

from magbatch.deploy.forms import LINK_LOCAL, LINK_LOCAL_V6
from magbatch.deploy.names import RAY, SUBMITTER, head_labels, metadata, pod_labels
from magbatch.deploy.platform import DASHBOARD_PORT, Platform
from magbatch.spec import JobSpec
from magbatch.spec.sections_output import METRICS_PORT


def policies(spec: JobSpec, platform: Platform) -> dict[str, dict[str, Any]]:
    """Return the NetworkPolicies of cluster, head and submitter by file name."""
    return {
        "networkpolicy.yaml": _cluster(spec, platform),
        "networkpolicy-head.yaml": _head(spec, platform),
        "networkpolicy-submitter.yaml": _submitter(spec, platform),
    }


def _cluster(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return the policy of the cluster: its pods reach each other, DNS, and all networks except link-local ones."""
    of_job = _pods(pod_labels(spec, RAY))
    world = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(LINK_LOCAL)}},
        {"ipBlock": {"cidr": "::/0", "except": list(LINK_LOCAL_V6)}},
        *({"ipBlock": {"cidr": network}} for network in platform.allow_egress),
    ]
    rules = {"ingress": [{"from": [of_job]}], "egress": [_dns(), {"to": [of_job]}, {"to": world}]}
    return _policy(spec, platform, "", pod_labels(spec, RAY), rules)


def _head(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return the policy of the head: operator and submitter may reach its dashboard, and Prometheus its metrics."""
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
    """Return the policy of the submitter: it may reach the dashboard of the head, and nothing may reach it."""
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
    """Allow DNS at any address, because a node's own resolver may be link-local.

    The metadata service hands out no credentials on this port.
    """
    return {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def service_account(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return a service account without rights of its own. The operator binds the autoscaler's Role to it."""
    found = metadata(spec, platform)
    if platform.role is not None:
        found["annotations"] = {"eks.amazonaws.com/role-arn": platform.role}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": found, "automountServiceAccountToken": False}


def pod_monitor(spec: JobSpec, platform: Platform) -> dict[str, Any]:
    """Return the monitor by which Prometheus reads the metrics of the driver, which cover the whole fleet."""
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
    """Return a budget that keeps the head from being evicted.

    Kubernetes refuses `maxUnavailable` here, because the owner of the pod, a RayCluster, has no scale subresource. So
    the budget uses `minAvailable`.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(spec, platform, "-head"),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": head_labels(spec)}},
    }
