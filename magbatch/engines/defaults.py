"""The engine arguments of an offline job; arguments that the spec sets come before these defaults."""

import os
from collections.abc import Mapping
from typing import Any

from magbatch.errors import SpecError
from magbatch.model.facts import ModelFacts
from magbatch.spec import JobSpec
from magbatch.spec.vllm_names import CPU_BLOCK

SECOND_ANSWER_TOKENS = 2048  # tokens kept for a second answer, and for the reason why the first was rejected
OFFLINE_SEQS_GPU = 256  # the KV cache, not compute, is the limit; vLLM preempts beyond it
OFFLINE_SEQS_CPU = 64
OFFLINE_BATCHED_TOKENS_GPU = 16384  # long prompts are read in few steps; latency does not matter offline
OFFLINE_BATCHED_TOKENS_CPU = 4096
CPU_KV_CACHE_BYTES = 1 << 30
DEVICES_A_NODE = 8  # GPUs of a usual machine; a replica with more GPUs runs on several machines
# On CPUs vLLM turns "uni" into "mp": a third process that imports torch and vLLM, 16 of the 52 s of CPU of a start. An
# executor that is given by its class name stays as it is.
CPU_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
# The scheduler for rows with a seed on CPUs: there an engine dies if it reads a prompt in more than one step.
WHOLE_PROMPTS = "magbatch.engines.whole.WholePrompts"
_NEVER_WHOLE = ("enable_chunked_prefill", "long_prefill_token_threshold", "scheduler_cls", "speculative_config")


def fake_args(spec: JobSpec, model: ModelFacts, hints: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Resolve the arguments of the scripted engine; see `magbatch.engines.engine_args`."""
    return _lengths(spec, model) | spec.model.engine_args


def vllm_args(spec: JobSpec, model: ModelFacts, hints: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Resolve the arguments of vLLM's `AsyncEngineArgs`; see `magbatch.engines.engine_args`.

    vLLM's own defaults suit serving: `AsyncLLM` takes 128 sequences and 2,048 batched tokens (seen with vLLM 0.32).

    Raises:
        SpecError: vLLM would not start with the spec's own arguments, or would crash on the job's seed.
    """
    gpus = spec.replicas.gpus
    defaults = _lengths(spec, model) | {
        "max_num_batched_tokens": OFFLINE_BATCHED_TOKENS_GPU if gpus else OFFLINE_BATCHED_TOKENS_CPU,
        "tokenizer_mode": "mistral",
        "config_format": "mistral",
        "load_format": "mistral",
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "tensor_parallel_size": max(1, gpus) // int(spec.model.engine_args.get("pipeline_parallel_size") or 1),
        # One device needs no worker process. Workers on one node are the engine's children; on several nodes, Ray's.
        "distributed_executor_backend": "uni" if gpus <= 1 else "mp" if gpus <= DEVICES_A_NODE else "ray",
    }
    if spec.answer.schema is not None:
        # No other backend knows Mistral's control tokens (seen with vLLM 0.32). Blanks in JSON would cost tokens.
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


def _lengths(spec: JobSpec, model: ModelFacts) -> dict[str, Any]:
    """Defaults of the arguments that magbatch computes with, for every engine."""
    # The smallest context in which each allowed prompt can have all of its max_tokens.
    wanted = spec.limits.max_prompt_tokens + spec.sampling.max_tokens
    if spec.answer.schema is not None:
        wanted += SECOND_ANSWER_TOKENS
    return {
        "max_model_len": min(model.context, wanted),
        "max_num_seqs": OFFLINE_SEQS_GPU if spec.replicas.gpus else OFFLINE_SEQS_CPU,
    }


def _check_lengths(spec: JobSpec, args: dict[str, Any], model: ModelFacts) -> None:
    """Raise SpecError for numbers with which vLLM does not start; its `SchedulerConfig` has these rules."""
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
        wrong = f"long_prefill_token_threshold: more than max_model_len, {longest}"
    elif counts.get("max_num_active_seqs", 0) > at_once:
        wrong = f"max_num_active_seqs: more than max_num_seqs, {at_once}"
    elif not spec.replicas.gpus and not model.latent and counts.get("block_size", 0) % CPU_BLOCK:
        wrong = (
            f"block_size: {counts['block_size']} is not a multiple of {CPU_BLOCK}, as vLLM's attention on CPUs needs"
        )
    if wrong:
        raise SpecError(f"model.engine_args.{wrong}")


def _whole(spec: JobSpec, args: dict[str, Any]) -> dict[str, Any]:
    """Add arguments that make vLLM read each prompt in one step; see `engines/whole.py`.

    Raises:
        SpecError: The spec's own arguments cut prompts.
    """
    own = spec.model.engine_args
    longest = int(args["max_model_len"])
    wrong = [f"{name}: {own[name]}" for name in _NEVER_WHOLE if own.get(name)]
    least = ("max_num_batched_tokens", "max_num_scheduled_tokens")
    wrong += [f"{name}: {own[name]}" for name in least if (own.get(name) or longest) < longest]
    if wrong:
        raise SpecError(
            f"sampling.seed cannot go with model.engine_args {', '.join(wrong)}: vLLM on CPUs dies of a seeded prompt "
            f"that it reads in several steps. Remove them (tokens in a step: {longest} or more), leave the seed "
            "out, or set sampling.temperature to 0"
        )
    args["max_num_batched_tokens"] = max(longest, int(args["max_num_batched_tokens"]))
    return args | {"enable_chunked_prefill": False, "scheduler_cls": WHOLE_PROMPTS}
