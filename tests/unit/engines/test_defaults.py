"""The engine is given offline defaults below what the spec sets, and nothing with which vLLM does not start."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from magbatch.engines import engine_args
from magbatch.engines.defaults import WHOLE_PROMPTS
from magbatch.errors import SpecError
from magbatch.model.facts import ModelFacts, facts
from magbatch.spec import JobSpec, parse

VISION, TEXT = ModelFacts(131_072, 1540, 28), ModelFacts(131_072, None, 0)


def job(**sections: Any) -> JobSpec:
    data = {"name": "t", "model": {"source": "a/b"}, "input": {"path": "/in", "columns": {"prompt": "q"}}}
    return parse(yaml.safe_dump(data | {"output": {"path": "/o"}} | sections))


def resolved(spec: JobSpec, model: ModelFacts) -> dict[str, Any]:
    """All arguments of a job's engine, by name."""
    return engine_args(spec, model).to_dict()


def test_a_job_computes_with_two_of_the_arguments() -> None:
    args = engine_args(job(model={"source": "a/b", "engine_args": {"max_num_seqs": 8}}), TEXT)
    assert (args.max_num_seqs, args.max_model_len) == (8, 40_000 + 32_768)
    assert not {"max_num_seqs", "max_model_len"} & args.more.keys()
    assert [*args.to_dict()][:3] == ["max_model_len", "max_num_seqs", "max_num_batched_tokens"], "as reports have them"


def test_the_offline_defaults_on_a_gpu() -> None:
    assert resolved(job(), VISION) == {
        "max_model_len": 40_000 + 32_768,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 16_384,
        "tokenizer_mode": "mistral",
        "config_format": "mistral",
        "load_format": "mistral",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "tensor_parallel_size": 1,
        "distributed_executor_backend": "uni",
        "limit_mm_per_prompt": {"image": 10},
    }


def test_the_offline_defaults_on_cpus() -> None:
    args = resolved(job(replicas={"gpus": 0}), TEXT)
    assert (args["max_num_seqs"], args["max_num_batched_tokens"]) == (64, 4096)
    assert (args["dtype"], args["enforce_eager"], args["kv_cache_memory_bytes"]) == ("float32", True, 1 << 30)
    assert args["tensor_parallel_size"] == 1
    assert args["distributed_executor_backend"].endswith(".UniProcExecutor"), "uni itself would become mp"
    assert "limit_mm_per_prompt" not in args


def seeded(own: dict[str, Any], gpus: int = 0, **sampling: Any) -> dict[str, Any]:
    """The arguments of an engine for rows with a seed."""
    model = {"source": "a/b", "engine_args": own}
    sampling = {"seed": 7, "temperature": 0.7} | sampling
    limits = {"max_prompt_tokens": 6000}
    return resolved(
        job(model=model, sampling=sampling | {"max_tokens": 100}, limits=limits, replicas={"gpus": gpus}), TEXT
    )


@pytest.mark.parametrize("own", [{}, {"max_num_batched_tokens": 20_000, "enable_chunked_prefill": False}])
def test_an_engine_on_cpus_reads_the_prompt_of_a_row_with_a_seed_whole(own: dict[str, Any]) -> None:
    args = seeded(own)
    assert args["max_num_batched_tokens"] == own.get("max_num_batched_tokens", 6100)
    assert (args["enable_chunked_prefill"], args["scheduler_cls"]) == (False, WHOLE_PROMPTS)
    for others in (seeded(own, gpus=1), seeded(own, seed=None), seeded(own, temperature=0.0)):
        assert "scheduler_cls" not in others


@pytest.mark.parametrize(
    "own",
    [
        {"enable_chunked_prefill": True},
        {"long_prefill_token_threshold": 512},
        {"max_num_batched_tokens": 4096},
        {"max_num_scheduled_tokens": 6099},
        {"max_num_batched_tokens": 7000, "max_model_len": 8000},
        {"scheduler_cls": "my.Scheduler"},
        {"speculative_config": {"method": "ngram"}},
    ],
)
def test_engine_arguments_that_cut_such_a_prompt_are_refused(own: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"^sampling\.seed cannot go with model\.engine_args " + next(iter(own))):
        seeded(own)
    seeded(own, gpus=1)
    seeded(own, seed=None)


def test_what_the_spec_sets_stands() -> None:
    mine = {"max_num_seqs": 8, "max_model_len": 4096, "config_format": "hf", "quantization": "fp8"}
    args = resolved(job(model={"source": "a/b", "engine_args": mine}), VISION)
    assert {name: args[name] for name in mine} == mine


@pytest.mark.parametrize(
    ("context", "prompt", "answer", "length"),
    [(131_072, 1000, 500, 1500), (8192, 40_000, 32_768, 8192), (8192, 8000, 192, 8192), (8192, 8000, 193, 8192)],
)
def test_the_context_is_no_larger_than_prompt_and_answer_need(
    context: int, prompt: int, answer: int, length: int
) -> None:
    spec = job(limits={"max_prompt_tokens": prompt}, sampling={"max_tokens": answer})
    assert resolved(spec, ModelFacts(context, None, 0))["max_model_len"] == length


@pytest.mark.parametrize(
    ("gpus", "mine", "tensor", "backend"),
    [
        (2, {}, 2, "mp"),
        (4, {"pipeline_parallel_size": 2}, 2, "mp"),
        (4, {"tensor_parallel_size": 4}, 4, "mp"),
        (16, {}, 16, "ray"),
        (2, {"distributed_executor_backend": "ray"}, 2, "ray"),
    ],
)
def test_the_devices_of_a_replica_are_all_used(gpus: int, mine: dict[str, Any], tensor: int, backend: str) -> None:
    spec = job(replicas={"gpus": gpus}, model={"source": "a/b", "engine_args": mine})
    args = resolved(spec, TEXT)
    assert (args["tensor_parallel_size"], args["distributed_executor_backend"]) == (tensor, backend)


def test_the_fake_engine_gets_what_it_knows(checkpoint: Path) -> None:
    mine = {"tokens": 3, "max_num_seqs": 2}
    spec = job(model={"source": "builtin:tiny", "engine": "fake", "engine_args": mine}, replicas={"gpus": 0})
    assert resolved(spec, facts(checkpoint)) == {"max_model_len": 8192, "max_num_seqs": 2, "tokens": 3}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"max_model_len": 200_000}, "max_model_len: 200000 is more than the model's context of 131072 tokens"),
        ({"max_num_seqs": 20_000}, "max_num_batched_tokens: 16384 is less than max_num_seqs, 20000"),
        ({"enable_chunked_prefill": False}, "max_num_batched_tokens: 16384 is less than max_model_len, 72768"),
        (
            {"long_prefill_token_threshold": 99_999},
            "long_prefill_token_threshold: more than max_model_len",
        ),
        ({"max_num_active_seqs": 300}, "max_num_active_seqs: more than max_num_seqs, 256"),
    ],
)
def test_numbers_with_which_vllm_does_not_start_are_refused(own: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        resolved(job(model={"source": "a/b", "engine_args": own}), VISION)
    assert str(caught.value).startswith(f"model.engine_args.{said}")


@pytest.mark.parametrize(
    "own",
    [
        {"max_model_len": 200_000, "hf_overrides": {"rope_parameters": {"rope_type": "yarn"}}},
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 72_768},
        {"max_num_batched_tokens": None},  # as a spec of an older version may have it
    ],
)
def test_numbers_with_which_vllm_may_start_pass(own: dict[str, Any]) -> None:
    assert resolved(job(model={"source": "a/b", "engine_args": own}), VISION).items() >= own.items()


@pytest.mark.parametrize("size", [7, 16])
def test_blocks_that_the_attention_on_cpus_has_no_kernel_for_are_refused(size: int) -> None:
    spec = job(model={"source": "a/b", "engine_args": {"block_size": size}}, replicas={"gpus": 0})
    with pytest.raises(
        SpecError, match=f"block_size: {size} is not a multiple of 32, as vLLM's attention on CPUs needs"
    ):
        resolved(spec, TEXT)
    assert resolved(spec, replace(TEXT, latent=True))["block_size"] == size  # vLLM sets its own
    assert resolved(job(model={"source": "a/b", "engine_args": {"block_size": size}}), TEXT)["block_size"] == size
