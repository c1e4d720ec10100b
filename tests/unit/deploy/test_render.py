"""Every rendered manifest is valid, says what the spec says, and holds no secret."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.manifests import (
    IMAGE,
    KUBERAY,
    ROOT,
    SCHEDULE,
    all_pods,
    check,
    check_pod,
    platform,
    pods,
    ray_object,
    rendered,
    spec,
)
from typer.testing import CliRunner

from magbatch.cli.app import app
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


@pytest.mark.parametrize("target", [Target.KUBERAY, Target.CLUSTER, Target.AWS])
def test_an_incremental_job_is_run_by_its_schedule_alone(target: Target) -> None:
    with pytest.raises(SpecError, match="--target cron"):
        render(spec("magistral-text", *SCHEDULE), target, platform())


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


@pytest.mark.parametrize("target", list(Target))
def test_what_is_checked_in_is_what_is_rendered(target: Target) -> None:
    wanted = [*(SCHEDULE if target == Target.CRON else [])]
    files = render(spec("magistral-text", *wanted), target, platform())
    folder = ROOT / "deploy" / target
    assert {path.name for path in folder.iterdir()} == set(files)
    for name, text in files.items():
        assert (folder / name).read_text() == text, f"render it again: deploy/render.sh ({name})"


TEXT = "jobs/magistral-text.yaml"

OPTIONS = ["--image", IMAGE, "--gpu-memory-gb", "80"]


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["deploy", "render", *arguments])


@pytest.mark.parametrize("network", ["169.254.0.0/16", "169.254.169.254/32", "fd00:ec2::/32"])
def test_a_way_to_the_nodes_credentials_is_told(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = command(TEXT, *OPTIONS, "--allow-egress", network)
    assert done.exit_code == 0, done.output
    assert f"note: --allow-egress {network}: pods can take the credentials of their node" in done.stderr


def test_machines_of_a_cluster_share_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = command("jobs/quickstart.yaml", *OPTIONS)
    assert (done.exit_code, "a cluster's machines share no disk" in done.output) == (2, True)


@pytest.mark.parametrize("target", [Target.KUBERAY, Target.CLUSTER, Target.AWS])
def test_the_command_writes_the_files_and_says_what_is_next(target: Target, tmp_path: Path) -> None:
    out = tmp_path / "of the team"
    done = command(str(ROOT / TEXT), "--target", target, "--out", str(out), *OPTIONS)
    assert done.exit_code == 0, done.output
    assert (out / ("cluster.yaml" if target == Target.AWS else "kustomization.yaml")).exists()
    following = [line.removeprefix("Next: ") for line in done.output.splitlines() if line.startswith("Next: ")]
    assert following
    assert any(f"'{out}'" in line for line in following), "quoted for a shell"
    for line in following:
        subprocess.run(["sh", "-n", "-c", line], check=True)
    if target == Target.AWS:
        subprocess.run(["sh", "-c", following[0]], check=True, env=os.environ | {"HOME": str(tmp_path)})
        token = tmp_path / ".ray/contracts-november.token"
        assert (token.stat().st_mode & 0o777, re.fullmatch("[0-9a-f]{64}", token.read_text()) is not None) == (
            0o600,
            True,
        )


@pytest.mark.parametrize("target", list(Target))
def test_no_secret_is_in_a_file(target: Target) -> None:
    options = platform() if target == Target.AWS else platform(secret="hf", role="arn:aws:iam::123456789012:role/x")
    wanted = ["schedule={cron: '0 6 * * *', timezone: UTC}"] if target == Target.CRON else []
    text = "".join(render(spec("magistral-text", *wanted), target, options).values())
    assert not re.search(r"AWS_SECRET|auth_token: (?!~)|RAY_AUTH_TOKEN=|HF_TOKEN|[0-9a-f]{32}", text)
    if target != Target.AWS:
        assert "secretRef:\n" in text
        assert "eks.amazonaws.com/role-arn: arn:aws:iam::123456789012:role/x" in text
