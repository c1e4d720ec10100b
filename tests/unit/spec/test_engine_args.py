"""Engine arguments of a new spec and of `--set` are checked without starting an engine."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from magbatch.errors import SpecError
from magbatch.spec import parse, unchecked
from magbatch.spec.vllm_names import installed


def text(args: dict[str, Any], engine: str = "vllm") -> str:
    return yaml.safe_dump(
        {
            "name": "t",
            "model": {"source": "a/b", "engine": engine, "engine_args": args},
            "input": {"path": "/in", "columns": {"prompt": "q"}},
            "output": {"path": "/out"},
        }
    )


def complaint(args: dict[str, Any], engine: str = "vllm") -> str:
    with pytest.raises(SpecError) as caught:
        parse(text(args, engine), new=True)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_num_seq", 8, "vLLM VERSION has no such argument; did you mean `max_num_seqs`?"),
        ("gpu-memory-utilization", 0.9, "vLLM VERSION has no such argument; did you mean `gpu_memory_utilization`?"),
        ("temperature", 1, "vLLM VERSION has no such argument; did you mean `sampling.temperature`?"),
        ("zzz", 1, "vLLM VERSION has no such argument; `vllm serve --help=all` lists them"),
        ("_api_process_count", 1, "vLLM VERSION has no such argument"),
        ("max_num_seqs", "many", "write a whole number of 1 or more (it is 'many')"),
        ("max_num_seqs", True, "write a whole number of 1 or more (it is true)"),
        ("max_model_len", None, "write a whole number of 1 or more (it is null)"),
        ("max_num_batched_tokens", -1, "write a whole number of 1 or more (it is -1)"),
        ("gpu_memory_utilization", "high", "write a number (it is 'high')"),
        ("gpu_memory_utilization", True, "write a number (it is true)"),
        ("gpu_memory_utilization", 90, "write a number above 0 and at most 1 (it is 90)"),
        ("gpu_memory_utilization", None, "is empty; leave it out for vLLM's own default"),
        ("enforce_eager", "yes", "write true or false (it is 'yes')"),
        ("block_size", 16.5, "write a whole number (it is 16.5)"),
        ("dtype", "flot16", "no such choice; did you mean `float16`? (it is 'flot16')"),
        ("kv_cache_dtype", 8, "write one of auto, float16"),
        ("performance_mode", "fast", "no such choice; write one of balanced, interactivity, throughput (it is 'fast')"),
        ("quantization", False, "write text (it is false)"),
        ("limit_mm_per_prompt", 3, "write a group of fields (it is 3)"),
        ("structured_outputs_config", {"backed": "guidance"}, "no such field 'backed'; did you mean `backend`?"),
        ("quantization", "nix", "vLLM VERSION has no 'nix', and no plugin of vLLM is installed here; it has auto_awq"),
        (
            "quantization",
            "ftp8",
            "vLLM VERSION has no 'ftp8', and no plugin of vLLM is installed here; did you mean `fp8`",
        ),
        ("load_format", "nix", "vLLM VERSION has no 'nix'"),
        ("tokenizer_mode", "nix", "vLLM VERSION has no 'nix'"),
        ("config_format", "nix", "vLLM VERSION has no 'nix'"),
        ("attention_backend", "NIX", "vLLM VERSION has no 'NIX'"),
        ("attention_config", {"backend": "NIX"}, "backend: vLLM VERSION has no 'NIX'"),
        ("attention_config", {"flash_attn_version": 7}, "flash_attn_version: write one of 2, 3, 4"),
        ("speculative_config", {"x": 1}, "no such field 'x'; it has "),
        ("speculative_config", {"methud": "ngram"}, "no such field 'methud'; did you mean `method`?"),
        ("speculative_config", {"method": "nix"}, "method: no such choice; "),
        (
            "speculative_config",
            {"num_speculative_tokens": 0},
            "num_speculative_tokens: write a number above 0 (it is 0)",
        ),
        (
            "distributed_executor_backend",
            "nix",
            "write ray, mp, uni, external_launcher, package.module.Class (it is 'nix')",
        ),
        ("scheduler_cls", "nix", "write package.module.Class (it is 'nix')"),
        ("model", "a/c", "cannot be set here: model.source names the model"),
        ("tokenizer", "a/c", "cannot be set here: prompts are made with the tokenizer of model.source"),
        ("revision", "v2", "cannot be set here: model.revision names the version"),
        ("data_parallel_size", 2, "cannot be set here: replicas.min and replicas.max set the number of engines"),
    ],
)
def test_a_wrong_argument_of_vllm_is_named(name: str, value: Any, said: str) -> None:
    source = installed()
    assert source is not None
    said = said.replace("VERSION", source.version)
    assert f"\n  model.engine_args.{name}: {said}" in complaint({name: value})


@pytest.mark.parametrize(
    "args",
    [
        {"max_num_seqs": 8, "max_model_len": 4096, "max_num_batched_tokens": 8192, "gpu_memory_utilization": 1},
        {"quantization": "fp8", "kv_cache_dtype": "fp8", "dtype": "bfloat16", "seed": 3, "cpu_offload_gb": 4},
        {"distributed_executor_backend": "mp", "compilation_config": {"mode": 3}, "enable_prefix_caching": None},
        {
            "hf_overrides": {"a": 1},
            "limit_mm_per_prompt": {"image": 4},
            "optimization_level": 2,
            "moe_backend": "TRITON",
        },
        {"quantization": "modelopt_fp4", "load_format": "Mistral", "tokenizer_mode": "mistral", "config_format": "hf"},
        {"attention_backend": "flash_attn", "block_size": 16, "scheduler_cls": "own.module.Scheduler"},
        {"attention_backend": "auto", "speculative_config": {"method": "eagle3", "num-speculative-tokens": 3}},
        {"attention_config": {"backend": "auto", "flash_attn_version": 3}, "worker_cls": "auto"},
        {"speculative_config": {"method": "ngram"}, "attention_config": {"backend": "FLASH_ATTN"}, "max_lora_rank": 16},
    ],
)
def test_right_arguments_of_vllm_pass(args: dict[str, Any]) -> None:
    assert parse(text(args), new=True).model.engine_args == args


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"token": 3}, "model.engine_args.token: no such field; did you mean `tokens`?"),
        ({"tokens": "many"}, "model.engine_args.tokens: write a whole number (it is 'many')"),
        ({"max_num_seqs": 0}, "model.engine_args.max_num_seqs: write a whole number of 1 or more (it is 0)"),
        ({"script": [{"contains": "x", "do": "dye"}]}, "model.engine_args.script[0].do: did you mean die?"),
        ({"script": [{"contain": "x"}]}, "model.engine_args.script[0].contains: is missing: Text that"),
        ({"quantization": "fp8"}, "model.engine_args.quantization: no such field"),
    ],
)  # fmt: skip
def test_a_wrong_argument_of_the_scripted_engine_is_named(args: dict[str, Any], said: str) -> None:
    assert said in complaint(args, "fake")


def test_a_stored_spec_is_not_checked_against_the_installed_vllm() -> None:
    old = parse(text({"use_v2_block_manager": True}))
    assert old.model.engine_args == {"use_v2_block_manager": True}
    with pytest.raises(SpecError, match=r"max_num_seq: vLLM .* has no such argument"):
        parse(text({}), ["model.engine_args.max_num_seq=4"])  # what is set over it is


def test_a_note_says_that_names_are_not_checked_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = parse(text({"max_num_seqs": 8})).model, parse(text({"max_num_seq": 8})).model
    assert unchecked(right) is None
    monkeypatch.setitem(sys.modules, "vllm", None)  # as Python marks a package that is not to be found
    assert parse(text({"max_num_seq": 8}), new=True)
    assert "write a whole number of 1 or more" in complaint({"max_num_seqs": "many"})
    said = "model.engine_args: names and values are not checked, because vLLM is not installed here"
    assert unchecked(wrong) == said
    assert unchecked(parse(text({})).model) is None
    assert unchecked(parse(text({"tokens": 8}, "fake")).model) is None


def test_a_name_that_a_plugin_of_vllm_may_add_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no plugin of vLLM is installed here" in complaint({"quantization": "own_bits"})
    package = tmp_path / "own_bits-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: own-bits\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[vllm.general_plugins]\nown = own_bits:register\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = parse(text({"quantization": "own_bits", "load_format": "mistral"}), new=True).model
    assert unchecked(found) == (
        "model.engine_args.quantization: 'own_bits' is not one of vLLM's own names; an installed plugin (own-bits) "
        "must add it"
    )


@pytest.mark.parametrize("sizes", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}])
def test_an_engine_on_cpus_is_one_device(sizes: dict[str, int]) -> None:
    spec = text(sizes) + "replicas: {gpus: 0}\n"
    with pytest.raises(
        SpecError, match=r"asks for 2 devices a replica, and replicas\.gpus: 0 is one engine on the CPUs"
    ):
        parse(spec, new=True)
    assert parse(spec).model.engine_args == sizes  # an output of an earlier version goes on
    assert parse(text(sizes) + "replicas: {gpus: 2}\n", new=True)
