"""Sizes of weights are read from names and from local checkpoints."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from support.manifests import (
    IMAGE,
    ROOT,
    cluster_spec,
    platform,
    ray_object,
    rendered,
)
from typer.testing import CliRunner

from magbatch.cli.app import app
from magbatch.deploy import Target
from magbatch.errors import SpecError

TEXT = "jobs/magistral-text.yaml"


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["deploy", "render", str(ROOT / TEXT), "--image", IMAGE, *arguments])


def workers(target: Target, options: Any, *overrides: str) -> list[dict[str, Any]]:
    groups = cluster_spec(ray_object(rendered("magistral-text", target, options, *overrides)))["workerGroupSpecs"]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize(
    ("source", "args", "fits"),
    [
        ("Qwen/Qwen3-8B", "{}", True),
        ("Qwen/Qwen3-32B", "{}", False),
        ("Qwen/Qwen3-32B-AWQ", "{}", True),
        ("Qwen/Qwen3-30B-A3B", "{}", False),
        ("Qwen/Qwen3-30B-A3B-FP8", "{}", False),
        ("mistralai/Mixtral-8x7B-v0.1", "{}", False),
        ("openai/gpt-oss-20b", "{}", True),
        ("mistralai/Magistral-Small-2509", "{quantization: fp8}", True),
        ("mistralai/Magistral-Small-2509", "{cpu_offload_gb: 40}", True),
        ("mistralai/Devstral-Small-2-24B-Instruct-2512", "{}", True),  # its files are FP8: 24 of 24 GB
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", "{}", False),
        ("builtin:tiny", "{}", True),
    ],
)
def test_sizes_of_models_are_read_from_their_names(source: str, args: str, fits: bool) -> None:
    done = command("--accelerator", "L4", "--set", f"model.source={source}", "--set", f"model.engine_args={args}")
    assert done.exit_code == (0 if fits else 2), done.output


def checkpoint(folder: Path, name: str, tensors: int, dtype: str, size: int) -> None:
    """A checkpoint's file with a true header, and a hole for its tensors."""
    header = {
        f"layer.{n}": {"dtype": dtype, "shape": [size], "data_offsets": [n * size, (n + 1) * size]}
        for n in range(tensors)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    with (folder / name).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + tensors * size)


@pytest.mark.parametrize(("dtype", "refused"), [("BF16", True), ("F32", False)])
def test_the_size_of_a_local_checkpoint_is_read(dtype: str, refused: bool, tmp_path: Path) -> None:
    for name in ("consolidated.safetensors", "model-00001-of-00001.safetensors"):  # twice the same
        checkpoint(tmp_path, name, 10, dtype, 3 * 10**9)
    overrides = (f"model.source={tmp_path}",)
    options = platform(gpu_memory_gb=None, accelerators={"L4": ""})
    if refused:
        with pytest.raises(SpecError, match=re.escape(f"L4: the weights of {tmp_path} take 30 GB")):
            workers(Target.KUBERAY, options, *overrides)
    else:
        assert workers(Target.KUBERAY, options, *overrides)
