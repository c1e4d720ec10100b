"""The kind of a GPU, the requested memory and the model's weights fit each other."""

from typing import Any

import pytest
from support.manifests import (
    IMAGE,
    KUBERAY,
    ROOT,
    cluster_spec,
    platform,
    ray_object,
    rendered,
)
from typer.testing import CliRunner

from magbatch.cli.app import app
from magbatch.deploy import Target

TEXT = "jobs/magistral-text.yaml"

MEMORY_LABELS = {"karpenter.k8s.aws/instance-gpu-memory", "nvidia.com/gpu.memory"}


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["deploy", "render", str(ROOT / TEXT), "--image", IMAGE, *arguments])


def workers(target: Target, options: Any, *overrides: str) -> list[dict[str, Any]]:
    groups = cluster_spec(ray_object(rendered("magistral-text", target, options, *overrides)))["workerGroupSpecs"]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("target", KUBERAY)
@pytest.mark.parametrize("prefer", ["[]", "[{accelerator: A100}]", "[{accelerator: A100, market: spot}]"])
def test_kind_and_memory_hold_together(target: Target, prefer: str) -> None:
    pods = workers(target, platform(gpu_memory_gb=80, accelerators={"A100": ""}), f"replicas.prefer={prefer}")
    for pod in pods:
        assert pod["nodeSelector"]["karpenter.k8s.aws/instance-gpu-name"] == "a100"
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        least = [one for term in terms for one in term["matchExpressions"] if one["operator"] == "Gt"]
        assert {one["key"] for one in least} == MEMORY_LABELS
        assert len(least) == len(terms), "each term, since one of them is enough"
        assert all(40960 < int(one["values"][0]) < 81559 for one in least)


PREFER_T4 = ["--set", "replicas.prefer=[{accelerator: H100}, {accelerator: T4}]"]

PREFER_L4 = ["--set", "replicas.prefer=[{accelerator: L4}]"]


@pytest.mark.parametrize("target", list(Target))
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--accelerator", "L4", "--gpu-memory-gb", "80"], "--gpu-memory-gb 80: L4 has 24 GB"),
        ([*PREFER_L4, "--gpu-memory-gb", "80"], "--gpu-memory-gb 80: L4 has 24 GB"),
        (["--accelerator", "L4"], "L4: the weights of mistralai/Magistral-Small-2509 take 48 GB"),
        (PREFER_L4, "L4: the weights of mistralai/Magistral-Small-2509 take 48 GB"),
        (
            ["--gpu-memory-gb", "16", "--set", "model.source=a/Some-300B", "--cache-size", "2Ti"],
            "the weights of a/Some-300B take 600 GB",
        ),
        (
            [
                "--accelerator",
                "H100",
                "--set",
                "replicas.gpus=8",
                "--set",
                "model.source=a/DeepSeek-R1",
                "--cache-size",
                "1Ti",
            ],
            "H100: the weights of a/DeepSeek-R1 take 671 GB, and a replica's 8 x H100 of 80 GB have 640 GB",
        ),
    ],
)
def test_a_kind_that_is_too_small_is_refused_with_the_numbers(target: Target, arguments: list[str], said: str) -> None:
    schedule = ["--set", 'schedule={cron: "0 6 * * *", timezone: Europe/Paris}'] if target == Target.CRON else []
    done = command("--target", target, *schedule, *arguments)
    assert (done.exit_code, said in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--accelerator", "T4", "--gpu-memory-gb", "80"], "--gpu-memory-gb 80: T4 has 16 GB"),
        ([*PREFER_T4, "--gpu-memory-gb", "80"], "--gpu-memory-gb 80: T4 has 16 GB"),
        (["--accelerator", "T4"], "a replica's 1 x T4 of 16 GB have 16 GB"),
        (["--accelerator", "T4=a=b"], "a replica's 1 x T4 of 16 GB have 16 GB"),
        (PREFER_T4, "a replica's 1 x T4 of 16 GB have 16 GB"),
        (["--gpu-memory-gb", "24"], "--gpu-memory-gb 24: the weights of"),
        (["--gpu-memory-gb", "300"], "--gpu-memory-gb 300: no GPU known here has that much (288 at most)"),
        (["--accelerator", "T4"], "if its files are quantized, name the method in model.engine_args.quantization"),
        (["--accelerator", "H100", "--accelerator", "H100=a=b"], "--accelerator H100: is given twice"),
        (["--accelerator", "A100"], "1 x A100 of 40 GB have 40 GB; write --gpu-memory-gb 54 or more"),
    ],
)
def test_a_kind_is_refused_on_kubernetes(arguments: list[str], said: str) -> None:
    done = command(*arguments)
    assert (done.exit_code, said in done.output) == (2, True), done.output


@pytest.mark.parametrize("target", [Target.KUBERAY, Target.AWS])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--accelerator", "L40S"], "note: L40S: the weights of mistralai/Magistral-Small-2509 take 48 of 48 GB"),
        (
            ["--accelerator", "L4", "--set", "model.source=s3://models/ours"],
            "note: L4 (24 GB): memory is not checked, because the size of s3://models/ours is not known here",
        ),
    ],
)
def test_what_could_not_be_checked_is_told(target: Target, arguments: list[str], said: str) -> None:
    done = command("--target", target, *arguments)
    assert done.exit_code == 0, done.output
    assert said in done.stderr


def test_a_kind_of_unknown_memory_is_told() -> None:
    done = command("--accelerator", "Nix=a=b")
    assert done.exit_code == 0, done.output
    assert (
        "note: Nix: memory is not known here; the weights of mistralai/Magistral-Small-2509 take 48 GB" in done.stderr
    )


def test_jobs_without_gpus_need_no_memory_of_one() -> None:
    done = command("--set", "replicas.gpus=0")
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize("target", [Target.KUBERAY, Target.AWS])
@pytest.mark.parametrize(("option", "value"), [("--accelerator", "H100"), ("--gpu-memory-gb", "80")])
def test_a_gpu_that_no_replica_takes_is_told(target: Target, option: str, value: str) -> None:
    done = command("--target", target, "--set", "replicas.gpus=0", option, value)
    assert (done.exit_code, done.stderr) == (0, f"note: {option} is not used, because replicas.gpus is 0\n")
