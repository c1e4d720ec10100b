"""A wrong option is refused with one clear line that says what to write."""

import re
from typing import Any

import pytest
from support.manifests import (
    IMAGE,
    ROOT,
)
from typer.testing import CliRunner

from magbatch.cli.app import app

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


def test_an_image_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = command(TEXT, "--gpu-memory-gb", "80")
    assert done.exit_code == 2
    assert "--image: is missing; build an image and push it" in done.output
    assert "docker build -f deploy/Dockerfile.gpu" in done.output


def test_help_shows_the_options_group_by_group() -> None:
    text = command("--help").output
    heads = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert heads == ["Arguments", "Options", "Nodes", "Pods", "Kubernetes", "AWS (--target aws)"]
    readme = (ROOT / "deploy/README.md").read_text()
    options = set(re.findall(r"^ +(--[a-z-]+)", text, re.MULTILINE)) - {"--help", "--set"}
    assert not {option for option in options if f"`{option}" not in readme}, "options that deploy/README.md lacks"
