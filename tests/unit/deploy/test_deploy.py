"""Every manifest that is rendered is one that Kubernetes, KubeRay and Ray take, and says what the spec says."""

import copy
import re

import jsonschema
import pytest
import yaml
from support.manifests import (
    KUBERAY,
    ROOT,
    SCHEDULE,
    all_pods,
    check,
    check_pod,
    cluster_spec,
    platform,
    pods,
    ray_object,
    rendered,
    spec,
)

from magbatch.deploy import Platform, Target, render
from magbatch.errors import SpecError
from magbatch.spec import JobSpec

JOBS = ["magistral-text", "magistral-documents"]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("target", KUBERAY)
@pytest.mark.parametrize(
    "options", [platform(), platform(spot=None, role="arn:aws:iam::123456789012:role/x", secret="hf")]
)
def test_manifests_are_valid(job: str, target: Target, options: Platform) -> None:
    files = rendered(job, target, options)
    assert files["kustomization.yaml"]["resources"] == [name for name in files if name != "kustomization.yaml"]
    for manifest in files.values():
        check(manifest)
    for pod in all_pods(ray_object(files)):
        check_pod(pod)
    for pod in pods(ray_object(files)):
        assert pod["spec"]["serviceAccountName"] == files["serviceaccount.yaml"]["metadata"]["name"]


def test_gpus_and_replicas_are_those_of_the_spec() -> None:
    tensor = ("replicas={min: 0, max: 5, gpus: 4}",)
    job = rendered("magistral-text", Target.KUBERAY, None, *tensor)["rayjob.yaml"]
    head, *workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"], *pods(job)
    assert [group["maxReplicas"] for group in head] == [5, 5]
    limits = [pod["spec"]["containers"][0]["resources"]["limits"] for pod in workers]
    assert [limit.get("nvidia.com/gpu") for limit in limits] == [None, "4", "4"]
    aws = rendered("magistral-text", Target.AWS, None, *tensor)["cluster.yaml"]
    assert aws["max_workers"] == 3, "two replicas of 4 GPUs fit a machine of 8"
    assert aws["available_node_types"]["spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


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


def test_each_kind_of_node_that_a_spec_prefers_is_a_machine_on_aws() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    launcher = rendered("magistral-text", Target.AWS, None, *PREFER)["cluster.yaml"]
    validate_config(prepare_config(copy.deepcopy(launcher)))
    first, second = launcher["available_node_types"]["h100_spot"], launcher["available_node_types"]["a100_b"]
    assert (first["node_config"]["InstanceType"], first["max_workers"]) == ("p5.4xlarge", 5)
    assert (second["node_config"]["InstanceType"], second["max_workers"]) == ("p4de.24xlarge", 1)
    assert ("InstanceMarketOptions" in first["node_config"], "InstanceMarketOptions" in second["node_config"]) == (
        True,
        False,
    )
    assert second["labels"] == {"ray.io/accelerator-type": "A100", "zone": "b"}


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
    """Who places pods prefers spot nodes where both would do; Ray is told that these are none."""
    job = rendered("magistral-text", Target.KUBERAY)["rayjob.yaml"]
    spot, on_demand = (group["template"]["spec"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"])
    terms = on_demand["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    not_spot = {"key": "karpenter.sh/capacity-type", "operator": "NotIn", "values": ["spot"]}
    assert all(not_spot in term["matchExpressions"] for term in terms)
    assert "NotIn" not in str(spot["affinity"])


@pytest.mark.parametrize("target", [Target.KUBERAY, Target.CLUSTER, Target.AWS])
def test_an_incremental_job_is_run_by_its_schedule_alone(target: Target) -> None:
    with pytest.raises(SpecError, match="--target cron"):
        render(spec("magistral-text", *SCHEDULE), target, platform())


@pytest.mark.parametrize("name", ["2026.Invoices_of-November", "x" * 63, "a-" * 30 + "b"])
def test_names_are_those_that_kubernetes_takes(name: str) -> None:
    job = rendered("magistral-text", Target.KUBERAY, None, f"name={name}")["rayjob.yaml"]
    assert re.fullmatch("[a-z]([-a-z0-9]{0,33}[a-z0-9])", job["metadata"]["name"])


def test_a_node_that_goes_leaves_time_to_commit() -> None:
    job = rendered("magistral-text", Target.KUBERAY)["rayjob.yaml"]
    _, *workers = pods(job)
    for pod in workers:
        (command,) = (c["lifecycle"]["preStop"]["exec"]["command"] for c in pod["spec"]["containers"])
        before, _, rest = command[-1].partition("; ")
        assert (before, rest) == ("pkill -TERM -f '[M]apWorker'", "sleep 25")
        pattern = before.split("'")[1]
        assert re.search(pattern, "ray::MapWorker(MapBatches(_Worker))")
        assert not re.search(pattern, " ".join(command)), "it would end the shell that is to wait"
        assert pod["spec"]["terminationGracePeriodSeconds"] > 25
    assert "RAY_JOB_STOP_WAIT_TIME_S" in yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]


def test_the_spec_travels_and_its_metrics_can_be_read() -> None:
    files = rendered("magistral-text", Target.KUBERAY)
    text = files["configmap.yaml"]["data"]["job.yaml"]
    raw = render(spec(), Target.KUBERAY, platform())["configmap.yaml"]
    assert "  job.yaml: |\n    name: contracts-november\n" in raw, "a person can read it"
    (folder,) = (
        mount["mountPath"]
        for mount in next(pods(files["rayjob.yaml"]))["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "job"
    )
    assert files["rayjob.yaml"]["spec"]["entrypoint"] == f"sh {folder}/run.sh magbatch run {folder}/job.yaml"
    travelled = yaml.safe_load(text)
    declared = {port["containerPort"] for port in next(pods(files["rayjob.yaml"]))["spec"]["containers"][0]["ports"]}
    assert {6379, 8265, 10001} < declared, "who declares one port may lose KubeRay's own"
    port = next(pods(files["rayjob.yaml"]))["spec"]["containers"][0]["ports"][0]
    assert (travelled["metrics"]["bind"], travelled["metrics"]["port"]) == ("0.0.0.0", port["containerPort"])
    assert files["podmonitor.yaml"]["spec"]["podMetricsEndpoints"][0]["port"] == port["name"]
    assert files["networkpolicy-head.yaml"]["spec"]["ingress"][1]["ports"][0]["port"] == port["containerPort"]
    again = JobSpec.model_validate(travelled)
    assert again.model_copy(update={"metrics": spec().metrics}) == spec()


def test_a_schedule_becomes_a_ray_cron_job() -> None:
    job = rendered("magistral-text", Target.CRON)["raycronjob.yaml"]
    assert (job["spec"]["schedule"], job["spec"]["timeZone"]) == ("0 6 * * *", "Europe/Paris")
    assert (
        job["spec"]["jobTemplate"]["entrypoint"]
        == "sh /etc/magbatch/run.sh magbatch schedule tick /etc/magbatch/job.yaml"
    )
    with pytest.raises(SpecError, match="schedule is missing"):
        render(spec(), Target.CRON, platform())


def test_the_cluster_launcher_takes_its_file() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    launcher = rendered("magistral-text", Target.AWS)["cluster.yaml"]
    validate_config(prepare_config(copy.deepcopy(launcher)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(copy.deepcopy(launcher) | {"max_worker": 1}))


@pytest.mark.parametrize("target", list(Target))
def test_what_is_checked_in_is_what_is_rendered(target: Target) -> None:
    wanted = [*(SCHEDULE if target == Target.CRON else [])]
    files = render(spec("magistral-text", *wanted), target, platform())
    folder = ROOT / "deploy" / target
    assert {path.name for path in folder.iterdir()} == set(files)
    for name, text in files.items():
        assert (folder / name).read_text() == text, f"render it again: deploy/render.sh ({name})"


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


@pytest.mark.parametrize(
    ("names", "clear"),
    [
        (
            [f"quarterly-report-extraction-for-the-eu-region-{of}" for of in ("invoices", "contracts")],
            "quarterly-report-",
        ),
        (["invoices-may", "invoices_may", "invoices.may", "Invoices-May"], "invoices-may"),
        (["7-days", "job-7-days"], "job-7-days"),
        (["a" * 35, "a" * 36], "aaaa"),
    ],
)
def test_different_jobs_have_different_names(names: list[str], clear: str) -> None:
    found = []
    for name in names:
        files = render(spec("magistral-text", f"name={name}"), Target.KUBERAY, platform())
        manifest = yaml.safe_load(files["rayjob.yaml"])
        check(manifest)
        found.append(manifest["metadata"]["name"])
    assert len(set(found)) == len(names)
    assert all(
        name.startswith(clear) and len(name) <= 35 and re.fullmatch("[a-z][a-z0-9-]*[a-z0-9]", name) for name in found
    )


def test_a_name_that_kubernetes_takes_is_kept() -> None:
    files = render(spec("magistral-text", "name=invoices-may"), Target.KUBERAY, platform())
    assert yaml.safe_load(files["rayjob.yaml"])["metadata"]["name"] == "invoices-may"
