"""The engine arguments of an offline job, below those that its spec sets."""

import os
from collections.abc import Mapping
from typing import Any

from magbatch.errors import SpecError
from magbatch.model.checkpoint import ModelFacts
from magbatch.spec import JobSpec
from magbatch.spec.vllm_names import CPU_BLOCK

# What is wrong with a first answer, and the second one, stand behind the first.
SECOND_ANSWER_TOKENS = 2048
OFFLINE_SEQS_GPU = 256  # KV capacity, not compute, is the limit; vLLM preempts beyond it
OFFLINE_SEQS_CPU = 64
OFFLINE_BATCHED_TOKENS_GPU = 16384  # long prompts are read in few steps; latency does not matter here
OFFLINE_BATCHED_TOKENS_CPU = 4096
CPU_KV_CACHE_BYTES = 1 << 30
DEVICES_A_NODE = 8  # as GPU machines have them; a replica of more is spread over several
# vLLM makes "uni" into "mp" on CPUs, where its worker pins threads in a process of its own: a third one that imports
# torch and vLLM (16 of the 52 s of CPU that a start takes). By its name it is left as it is.
CPU_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


# Of a job with a seed on CPUs, where an engine that reads a prompt in more than one step dies: see `engines/whole.py`.
WHOLE_PROMPTS = "magbatch.engines.whole.WholePrompts"
_NEVER_WHOLE = ("enable_chunked_prefill", "long_prefill_token_threshold", "scheduler_cls", "speculative_config")


def engine_args(spec: JobSpec, model: ModelFacts, hints: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The engine's arguments: magbatch's offline defaults below what the spec sets.

    vLLM's own defaults suit serving: without these, `AsyncLLM` takes 128 sequences and 2,048
    batched tokens (measured, vLLM 0.32).

    Args:
        spec: The job.
        model: Its model.
        hints: Engine arguments that suit the job's input; see `Plan.engine_hints`.

    Raises:
        SpecError: The spec's own arguments would have an engine on CPUs die of the job's seed.
    """
    gpus = spec.replicas.gpus
    # The smallest context in which no allowed prompt loses any of its max_tokens.
    wanted = spec.limits.max_prompt_tokens + spec.sampling.max_tokens
    if spec.answer.schema is not None:
        wanted += SECOND_ANSWER_TOKENS
    defaults: dict[str, Any] = {
        "max_model_len": min(model.context, wanted),
        "max_num_seqs": OFFLINE_SEQS_GPU if gpus else OFFLINE_SEQS_CPU,
    }
    if spec.model.engine == "fake":
        return defaults | spec.model.engine_args
    defaults |= {
        "max_num_batched_tokens": OFFLINE_BATCHED_TOKENS_GPU if gpus else OFFLINE_BATCHED_TOKENS_CPU,
        "tokenizer_mode": "mistral",
        "config_format": "mistral",
        "load_format": "mistral",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "tensor_parallel_size": max(1, gpus) // int(spec.model.engine_args.get("pipeline_parallel_size") or 1),
        # One device needs no worker process beside the engine; those of one node are its children; more are Ray's.
        "distributed_executor_backend": "uni" if gpus <= 1 else "mp" if gpus <= DEVICES_A_NODE else "ray",
    }
    if spec.answer.schema is not None:
        # The one backend that knows Mistral's control tokens (measured, vLLM 0.32); blanks between values say nothing.
        defaults["structured_outputs_config"] = {"backend": "guidance", "disable_any_whitespace": True}
    if model.image_size:
        defaults["limit_mm_per_prompt"] = {"image": spec.limits.max_images}
        defaults |= hints or {}
    if not gpus:
        defaults |= {
            "dtype": "float32",
            "enforce_eager": True,
            "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
            "distributed_executor_backend": CPU_EXECUTOR,
        }
    args = defaults | spec.model.engine_args
    _check_lengths(spec, args, model)
    return args if gpus or spec.sampling.seed is None or not spec.sampling.temperature else _whole(spec, args)


def _check_lengths(spec: JobSpec, args: dict[str, Any], model: ModelFacts) -> None:
    """Raise SpecError for numbers of tokens and sequences with which vLLM does not start (its `SchedulerConfig`)."""
    counts = {name: value for name, value in args.items() if isinstance(value, int)}
    longest, at_once = counts.get("max_model_len", 1), counts.get("max_num_seqs", 1)
    tokens = counts.get("max_num_batched_tokens", max(longest, at_once))
    long_allowed = os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") != "0" or "hf_overrides" in args
    wrong = ""
    if longest > model.context and not long_allowed:
        wrong = f"max_model_len: {longest} is more than the model's context of {model.context} tokens"
    elif tokens < at_once:
        wrong = f"max_num_batched_tokens: {tokens} is less than max_num_seqs, {at_once}; a step has a token of each"
    elif tokens < longest and args.get("enable_chunked_prefill") is False and spec.replicas.gpus:
        wrong = (
            f"max_num_batched_tokens: {tokens} is less than max_model_len, {longest}; without enable_chunked_prefill "
            "a prompt is read in one step"
        )
    elif counts.get("long_prefill_token_threshold", 0) > longest:
        wrong = f"long_prefill_token_threshold: it is more than max_model_len, {longest}"
    elif counts.get("max_num_active_seqs", 0) > at_once:
        wrong = f"max_num_active_seqs: it is more than max_num_seqs, {at_once}"
    elif not spec.replicas.gpus and not model.latent and counts.get("block_size", 0) % CPU_BLOCK:
        wrong = f"block_size: {counts['block_size']} is no multiple of {CPU_BLOCK}, as vLLM's attention on CPUs needs"
    if wrong:
        raise SpecError(f"model.engine_args.{wrong}")


def _whole(spec: JobSpec, args: dict[str, Any]) -> dict[str, Any]:
    """The arguments with which each prompt is read in one step."""
    own = spec.model.engine_args
    longest = int(args["max_model_len"])
    wrong = [f"{name}: {own[name]}" for name in _NEVER_WHOLE if own.get(name)]
    least = ("max_num_batched_tokens", "max_num_scheduled_tokens")
    wrong += [f"{name}: {own[name]}" for name in least if (own.get(name) or longest) < longest]
    if wrong:
        raise SpecError(
            f"sampling.seed cannot go with model.engine_args {', '.join(wrong)}: vLLM on CPUs dies of a seeded prompt "
            f"that it reads in several steps. Leave these out (tokens in a step: {longest} or more), leave the seed "
            "out, or set sampling.temperature to 0"
        )
    args["max_num_batched_tokens"] = max(longest, int(args["max_num_batched_tokens"]))
    return args | {"enable_chunked_prefill": False, "scheduler_cls": WHOLE_PROMPTS}
