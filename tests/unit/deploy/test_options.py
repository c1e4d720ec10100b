"""The command says what is wrong with an option, puts each where it belongs, and prints commands that can be pasted."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from support.manifests import (
    IMAGE,
    KUBERAY,
    ROOT,
    all_pods,
    check,
    cluster_spec,
    job_spec,
    platform,
    pods,
    ray_object,
    rendered,
    spec,
)
from typer.testing import CliRunner

from magbatch.cli.app import app
from magbatch.deploy import Target, next_commands
from magbatch.deploy.kuberay import RETRIES, SCRIPT
from magbatch.guard import UNATTENDED
from magbatch.remote import environment

TEXT = "jobs/magistral-text.yaml"
OPTIONS = ["--image", IMAGE, "--gpu-memory-gb", "80"]
ROLE = "arn:aws:iam::123456789012:role/magbatch"
PROFILE = "arn:aws:iam::123456789012:instance-profile/magbatch"


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["deploy", "render", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "helm"], "--target helm: write one of kuberay, raycluster, cron, aws"),
        (["--spot", "spot"], "--spot spot: write a Kubernetes label=value"),
        (["--accelerator", "H100=gpu"], "--accelerator H100=gpu: write NAME=label=value"),
        (["--target", "aws", "--secret", "hf"], "--secret: AWS machines have no Secrets"),
        (["--target", "aws", "--role", ROLE], "--role: AWS machines run no pods; write --instance-profile"),
        (["--target", "aws", "--instance-profile", ROLE], "write the name of an instance profile or its ARN"),
        (["--role", "magbatch"], "--role magbatch: write the role's ARN"),
        (["--role", PROFILE], "write the role's ARN"),
        (["--instance-profile", "magbatch"], "pods have no instance profile; write --role arn:aws:iam::"),
        (["--target", "cron", "--queue", "a"], "--queue: Kueue finds a job by its label"),
        (["--target", "raycluster", "--deadline-seconds", "60"], "--deadline-seconds: --target raycluster has no such"),
        (["--region", "eu-west-1"], "--region: --target kuberay has no such option"),
        (["--cache-size", "100"], "--cache-size 100: write a size such as 100Gi"),
        (["--worker-cpu", "half"], "--worker-cpu half: write a whole number of CPUs"),
        (["--worker-cpu", "1"], "--worker-cpu 1: replicas.cpus takes 1 of them, and reading at least 1"),
        (["--namespace", "Team A"], "--namespace 'Team A': write a Kubernetes namespace"),
        (["--image-pull-secret", "my secret"], "--image-pull-secret 'my secret': write a Kubernetes name"),
        (["--allow-egress", "169.254.170"], "--allow-egress 169.254.170: write a CIDR"),
        (["--image", "my image"], "--image 'my image': write registry/name:tag"),
        (["--image", "registry.example/Magbatch"], "--image registry.example/Magbatch: write registry/name:tag"),
        (["--allow-egress", "0.0.0.0/0"], "--allow-egress 0.0.0.0/0: write a network within 169.254.0.0/16"),
        (["--allow-egress", "::/0"], "--allow-egress ::/0: write a network within"),
        (["--allow-egress", "169.0.0.0/8"], "--allow-egress 169.0.0.0/8: write a network within"),
        (["--allow-egress", "10.0.0.0/8"], "--allow-egress 10.0.0.0/8: write a network within"),
        (["--allow-egress", "169.254.170.23"], "--allow-egress 169.254.170.23: write a CIDR: 169.254.170.23/32"),
        (["--zone", "us east"], "--zone 'us east': write a zone"),
        (["--zone", ""], "--zone '': write a zone"),
        (["--spot", "a b=c"], "--spot 'a b=c': write a Kubernetes label=value"),
        (["--spot", "a=b c"], "--spot 'a=b c': write a Kubernetes label=value"),
        (
            ["--accelerator", "Nix"],
            "--accelerator Nix: label of its nodes is not known; write --accelerator Nix=LABEL=VALUE",
        ),
        (["--set", "replicas.prefer=[{accelerator: Nix}]"], "replicas.prefer: Nix: label of its nodes is not known"),
        (["--accelerator", "H100=x=y z"], "--accelerator H100=x=y z: write NAME=label=value"),
        (
            ["--accelerator", "A100", "--set", "replicas.prefer=[{accelerator: H100}]"],
            "--accelerator A100: replicas.prefer names H100 instead",
        ),
        (["--head-memory", "1Mi"], "--head-memory 1Mi: holds Ray's own processes"),
        (["--worker-memory", "1Gi"], "--worker-memory 1Gi: holds an engine's processes"),
        (["--scratch-size", "1k"], "--scratch-size 1k: holds Ray's logs"),
        (["--cache-size", "1Gi"], "--cache-size 1Gi: holds the model's files"),
        (["--cache-size", "20Gi"], "--cache-size 20Gi: the files of mistralai/Magistral-Small-2509 take 48 GB"),
        (["--gpu-memory-gb", "81920"], "--gpu-memory-gb 81920: write 1 to 1024 GB"),
        (["--keep-cluster-seconds", "3000000000"], "--keep-cluster-seconds 3000000000: write 0 to"),
        (["--namespace", "a.b"], "--namespace a.b: write a Kubernetes namespace"),
        (["--secret", "a..b"], "--secret a..b: write a Kubernetes name"),
        (["--role", "arn:aws:iam::1:role/x"], "write the role's ARN"),
        (["--target", "aws", "--zone", "eu-west-1a"], "--zone eu-west-1a is not in us-east-1; write --region"),
        (["--target", "aws", "--region", "nowhere"], "--region nowhere: write an AWS region"),
        (["--target", "aws", "--security-group", "foo"], "--security-group foo: write the id of a security group"),
        (["--target", "aws", "--spot", "a=b"], "--spot a=b: machines on AWS have no labels"),
        (["--target", "aws", "--accelerator", "H100=a=b"], "--accelerator H100=a=b: machines on AWS have no labels"),
    ],
)
def test_what_is_wrong_is_one_clear_line(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = command(TEXT, *OPTIONS, *arguments)
    assert done.exit_code == 2, done.output
    assert said in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--image", "localhost:5000/team/magbatch@sha256:" + "a" * 64],
        ["--image", "magbatch"],
        ["--spot", "cloud.google.com/gke-spot=true"],
        ["--allow-egress", "169.254.170.23/32", "--allow-egress", "fd00:ec2::23/128", "--allow-egress", "fe80::/64"],
        ["--target", "aws", "--region", "eu-west-1", "--zone", "eu-west-1a"],
        ["--target", "aws", "--region", "us-gov-west-1"],
        ["--target", "aws", "--region", "ap-southeast-2", "--security-group", "sg-0a1b2c3d"],
        ["--target", "aws", "--region", "us-west-2", "--zone", "us-west-2-lax-1a"],
        ["--target", "aws", "--spot", "none"],
        ["--storage-class", "gp3", "--cache-size", "60Gi", "--head-memory", "4Gi"],
    ],
)
def test_what_is_right_is_rendered_without_a_note(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = command(TEXT, *OPTIONS, *arguments)
    assert (done.exit_code, done.stderr) == (0, ""), done.output


@pytest.mark.parametrize("network", ["169.254.0.0/16", "169.254.169.254/32", "fd00:ec2::/32"])
def test_a_way_to_the_nodes_credentials_is_told(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = command(TEXT, *OPTIONS, "--allow-egress", network)
    assert done.exit_code == 0, done.output
    assert f"note: --allow-egress {network}: pods can take the credentials of their node" in done.stderr


def test_an_image_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = command(TEXT, "--gpu-memory-gb", "80")
    assert done.exit_code == 2
    assert "--image: is missing; build one and push it" in done.output
    assert "docker build -f deploy/Dockerfile.gpu" in done.output


def test_machines_of_a_cluster_share_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = command("jobs/quickstart.yaml", *OPTIONS)
    assert (done.exit_code, "a cluster's machines share no disk" in done.output) == (2, True)


def test_help_shows_the_options_group_by_group() -> None:
    text = command("--help").output
    heads = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert heads == ["Arguments", "Options", "Nodes", "Pods", "Kubernetes", "AWS (--target aws)"]
    readme = (ROOT / "deploy/README.md").read_text()
    options = set(re.findall(r"^ +(--[a-z-]+)", text, re.MULTILINE)) - {"--help", "--set"}
    assert not {option for option in options if f"`{option}" not in readme}, "options that deploy/README.md lacks"


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


@pytest.mark.parametrize("target", [Target.KUBERAY, Target.CLUSTER])
def test_a_queued_job_waits_for_kueue(target: Target) -> None:
    ray = ray_object(rendered("magistral-text", target, platform(queue="team-a")))
    assert ray["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert ray["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}, "its nodes come and go"
    assert (ray["spec"]["suspend"], cluster_spec(ray)["enableInTreeAutoscaling"]) == (True, True)


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


def test_a_job_on_aws_is_submitted_and_so_told_the_same() -> None:
    """A person's own commands in the container are not: there the variable is not set."""
    *_, last = next_commands(spec(), Target.AWS, platform(), "deploy/aws", TEXT)
    assert "'magbatch submit " in last
    assert environment("x")["env_vars"][UNATTENDED] == "1"
    assert UNATTENDED not in str(rendered("magistral-text", Target.AWS))


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
