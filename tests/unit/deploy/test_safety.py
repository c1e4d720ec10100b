"""What is rendered is safe by default: who gets in, what goes out, which rights a pod has, what may take it away."""

import ipaddress
import json
import re
from typing import Any

import pytest
from support.manifests import (
    KUBERAY,
    all_pods,
    check,
    check_pod,
    cluster_spec,
    job_spec,
    platform,
    pods,
    ray_object,
    rendered,
    spec,
)

from magbatch.deploy import Target, render
from magbatch.errors import SpecError

INSTANCE = {"app.kubernetes.io/instance": "contracts-november", "app.kubernetes.io/part-of": "magbatch"}
SECURITY_GROUP = "sg-0a1b2c3d4e5f60718"
VOLUMES = {"configMap", "emptyDir", "ephemeral", "projected", "secret", "downwardAPI", "persistentVolumeClaim", "csi"}


def restricted(pod: dict[str, Any], *more: dict[str, Any]) -> list[str]:
    """What Pod Security's "restricted" profile has against a pod, with containers that KubeRay adds to it."""
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
def test_a_cluster_on_kubernetes_asks_for_a_token(target: Target) -> None:
    assert cluster_spec(ray_object(rendered("magistral-text", target)))["authOptions"] == {"mode": "token"}


def test_a_cluster_on_aws_asks_for_a_token_that_is_in_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = rendered("magistral-text", Target.AWS)["cluster.yaml"]
    environment = dict(
        option.removeprefix("--env ").split("=", 1)
        for option in launcher["docker"]["run_options"]
        if option.startswith("--env ")
    )
    assert environment["RAY_AUTH_MODE"] == "token"
    assert launcher["file_mounts"][environment["RAY_AUTH_TOKEN_PATH"]] == "~/.ray/contracts-november.token"
    started = [line for line in launcher["head_start_ray_commands"] if "ray start" in line]
    assert all("--dashboard-host=127.0.0.1" in line and "--num-cpus=0" in line for line in started)


@pytest.mark.parametrize("profile", ["magbatch", "arn:aws:iam::123456789012:instance-profile/magbatch"])
def test_machines_on_aws_keep_their_credentials_to_themselves(profile: str) -> None:
    options = platform(instance_profile=profile, head_instance_profile="ray-head", security_group=SECURITY_GROUP)
    types = rendered("magistral-text", Target.AWS, options)["cluster.yaml"]["available_node_types"]
    for name, kind in types.items():
        config = kind["node_config"]
        assert config["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert config["SecurityGroupIds"] == [SECURITY_GROUP]
        key = "Arn" if profile.startswith("arn:") else "Name"
        assert config["IamInstanceProfile"] == ({"Name": "ray-head"} if name == "head" else {key: profile})
    assert types["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


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
    """Whether a policy lets its pods out to an address that is no pod's."""
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


@pytest.mark.parametrize(
    ("memory", "machine"), [(None, "p5.4xlarge"), (24, "g6.4xlarge"), (40, "g6e.4xlarge"), (80, "p5.4xlarge")]
)
def test_machines_have_the_memory_that_is_asked_for(memory: int | None, machine: str) -> None:
    small = "model.source=Qwen/Qwen3-8B"
    launcher = rendered("magistral-text", Target.AWS, platform(gpu_memory_gb=memory), small)["cluster.yaml"]
    assert launcher["available_node_types"]["spot"]["node_config"]["InstanceType"] == machine
    with pytest.raises(SpecError, match="no GPU known here has that much"):
        rendered("magistral-text", Target.AWS, platform(gpu_memory_gb=500))


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


@pytest.mark.parametrize("target", list(Target))
def test_no_secret_is_in_a_file(target: Target) -> None:
    options = platform() if target == Target.AWS else platform(secret="hf", role="arn:aws:iam::123456789012:role/x")
    wanted = ["schedule={cron: '0 6 * * *', timezone: UTC}"] if target == Target.CRON else []
    text = "".join(render(spec("magistral-text", *wanted), target, options).values())
    assert not re.search(r"AWS_SECRET|auth_token: (?!~)|RAY_AUTH_TOKEN=|HF_TOKEN|[0-9a-f]{32}", text)
    if target != Target.AWS:
        assert "secretRef:\n" in text
        assert "eks.amazonaws.com/role-arn: arn:aws:iam::123456789012:role/x" in text
