"""A whole job spec: what its sections must agree on, and what makes two of them different jobs."""

import re
from typing import Annotated, Any

import yaml
from pydantic import AwareDatetime, Field, ValidationInfo, field_validator, model_validator

from magbatch.counts import counted
from magbatch.schema import RESERVED_COLUMNS
from magbatch.spec.schema import properties
from magbatch.spec.secrets import HIDDEN, shown
from magbatch.spec.sections import (
    MAX_SHARD_ROWS,
    MIN_SHARD_ROWS,
    NEW,
    AnswerSpec,
    CostSpec,
    InputSpec,
    LimitsSpec,
    MetricsSpec,
    ModelSpec,
    OutputSpec,
    PromptSpec,
    ReasoningSpec,
    ReplicasSpec,
    SamplingSpec,
    ScheduleSpec,
    Section,
)

ANSWER_COLUMNS = frozenset({"extracted", "vote"})
SHARDS_PER_REPLICA = 32  # enough that replicas stay even when one shard is slow
GROUPED_SHARDS_PER_REPLICA = 8  # at least so many where rows that share a prefix are kept in one shard

# What may change between two runs of one job: none of it changes what an answer would be.
FREE_FIELDS = frozenset(
    {"name", "replicas", "metrics", "cost", "deadline", "schedule"}
    | {"output.commit_interval_s", "output.commit_rows", "output.patience_s"}
    | {"limits.max_failed_rows", "limits.row_timeout_s", "limits.answer_timeout_s", "input.fetch_timeout_s"}
    | {"input.fetch_from", "input.fetch_private"}
    | {"limits.image_timeout_s", "limits.document_timeout_s", "limits.document_memory_mb"}
    | {"input.shard_rows", "input.group", "input.on_bad_file", "input.incremental"}  # these are frozen in the plan
    | {f"model.engine_args.{name}" for name in (
        "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_memory_bytes", "enforce_eager",
        "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "enable_prefix_caching",
        "mm_processor_cache_gb", "disable_log_stats", "compilation_config",
    )}
)  # fmt: skip


ENGINE_ARGS = "model.engine_args."  # among them no secret: what it opens is the same without it


class JobSpec(Section):
    """One job."""

    name: Annotated[str, Field(description="A short name for people and metrics.")]
    model: Annotated[ModelSpec, Field(description="Which model answers, and in which engine.")]
    input: Annotated[InputSpec, Field(description="Where the rows come from.")]
    prompt: Annotated[PromptSpec, Field(description="How a row becomes a chat.")] = PromptSpec()
    reasoning: Annotated[ReasoningSpec, Field(description="How much a row may think.")] = ReasoningSpec()
    answer: Annotated[AnswerSpec, Field(description="What is made of an answer.")] = AnswerSpec()
    sampling: Annotated[SamplingSpec, Field(description="Sampling parameters, by vLLM's names.")] = SamplingSpec()
    output: Annotated[OutputSpec, Field(description="Where the answers go.")]
    replicas: Annotated[ReplicasSpec, Field(description="How many engines.")] = ReplicasSpec()
    limits: Annotated[LimitsSpec, Field(description="What a row may cost, and how much may fail.")] = LimitsSpec()
    metrics: Annotated[MetricsSpec, Field(description="Where the numbers are shown.")] = MetricsSpec()
    cost: Annotated[CostSpec, Field(description="What a device costs.")] = CostSpec()
    deadline: Annotated[
        AwareDatetime | None,
        Field(
            description="When it should be complete, 2026-11-30T08:00:00+01:00: an alert's matter, it stops nothing."
        ),
    ] = None
    schedule: Annotated[
        ScheduleSpec | None, Field(description="When it runs by itself, each time into a dated output; null: never.")
    ] = None

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
            raise ValueError("write 1 to 63 letters, digits, `.`, `-` and `_`; the first a letter or a digit")
        return value

    @field_validator("input")
    @classmethod
    def _input_is_asked_something(cls, value: InputSpec) -> InputSpec:
        columns = value.columns
        if columns.messages and columns.prompt:
            raise ValueError("columns: set `prompt` or `messages`, not both")
        duplicates = {name for name in value.carry if value.carry.count(name) > 1}
        if duplicates:
            raise ValueError(f"carry names {sorted(duplicates)} twice")
        return value

    @model_validator(mode="after")
    def _a_question_exists(self, info: ValidationInfo) -> "JobSpec":
        columns = self.input.columns
        if not (columns.prompt or columns.messages or self.prompt.template):
            raise ValueError("nothing to ask: set input.columns.prompt, input.columns.messages or prompt.template")
        budget = self.reasoning.budget_tokens
        if budget is not None and budget >= self.sampling.max_tokens:
            raise ValueError(
                f"reasoning.budget_tokens ({budget}) leaves nothing of sampling.max_tokens "
                f"({self.sampling.max_tokens}) for the answer"
            )
        own = {*RESERVED_COLUMNS, *ANSWER_COLUMNS}
        taken = sorted(own & set(properties(self.answer.schema or {})))
        if taken:
            raise ValueError(f"answer.schema: {taken} are columns of the output already; rename these properties")
        if self.answer.schema is not None and not properties(self.answer.schema):
            raise ValueError("answer.schema: describe an object with named properties: each becomes a column")
        if self.answer.vote is not None and self.sampling.n < 2:
            raise ValueError("answer.vote needs samples to count: set sampling.n to 2 or more")
        if self.input.incremental and self.schedule is None:
            raise ValueError("input.incremental is for jobs that run again and again: set schedule.cron too")
        if columns.messages and self.prompt.template:
            raise ValueError("prompt.template cannot be used with input.columns.messages: a chat is taken as it is")
        self._check_devices(new=bool((info.context or {}).get(NEW)))
        return self

    def _check_devices(self, *, new: bool) -> None:
        """Raise ValueError where the engine's devices are not the replica's."""
        sizes = {}
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            size = sizes[name] = self.model.engine_args.get(name)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"model.engine_args.{name} is a whole number of 1 or more, not {size!r}")
        gpus, stages = self.replicas.gpus, sizes["pipeline_parallel_size"] or 1
        devices = (sizes["tensor_parallel_size"] or max(1, gpus // stages)) * stages
        if self.model.engine != "vllm" or devices == max(1, gpus):
            return
        if gpus:
            raise ValueError(
                f"model.engine_args asks for {counted(devices, 'device')} a replica, replicas.gpus for {gpus}: "
                "make them equal"
            )
        if new:
            raise ValueError(
                f"model.engine_args asks for {devices} devices a replica, and replicas.gpus: 0 is one engine on the "
                f"CPUs: set replicas.gpus to {devices}, or leave tensor_parallel_size and pipeline_parallel_size out"
            )

    def shard_rows(self, total_rows: int) -> int:
        """Rows in a shard of a job with this many rows.

        Small enough that every replica gets many shards, large enough that Ray's cost for each
        (20-50 ms of CPU) does not count.
        """
        if self.input.shard_rows is not None:
            return self.input.shard_rows
        share = total_rows // (self.replicas.max * SHARDS_PER_REPLICA)
        return max(MIN_SHARD_ROWS, min(MAX_SHARD_ROWS, share))

    def group_rows(self, total_rows: int) -> int:
        """Rows that a shard of such a job may have so that rows which share a prefix are not cut apart."""
        share = total_rows // (self.replicas.max * GROUPED_SHARDS_PER_REPLICA)
        return max(self.shard_rows(total_rows), min(MAX_SHARD_ROWS, share) if self.input.shard_rows is None else 0)

    def to_yaml(self) -> str:
        """The spec as it is stored beside the output: every field, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def with_output(self, path: str) -> "JobSpec":
        """The same job into another output."""
        return self.model_copy(update={"output": self.output.model_copy(update={"path": path})})


def differences(old: JobSpec, new: JobSpec) -> list[str]:
    """What makes two specs different jobs: `field: old -> new` lines, empty where a resume is right."""

    def flat(node: Any, path: str) -> dict[str, Any]:
        if path in FREE_FIELDS or path == f"{ENGINE_ARGS}hf_token" or node == HIDDEN:
            return {}
        if isinstance(node, list) and node and all(item == HIDDEN for item in node):
            return {}
        if not isinstance(node, dict):
            return {path: node}
        leaves: dict[str, Any] = {}
        for name, child in node.items():
            leaves |= flat(child, f"{path}.{name}" if path else name)
        return leaves

    before, after = flat(shown(old.model_dump(mode="json")), ""), flat(shown(new.model_dump(mode="json")), "")
    return [
        f"{path}: {before.get(path)!r} -> {after.get(path)!r}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
