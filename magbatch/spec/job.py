"""The whole job spec: rules that hold between its sections, and the differences that make two specs two jobs."""

import re
from typing import Annotated, Any

import yaml
from pydantic import AwareDatetime, Field, ValidationInfo, field_validator, model_validator

from magbatch.counts import counted
from magbatch.schema import RESERVED_COLUMNS
from magbatch.spec.engines import needs_weights
from magbatch.spec.schema import properties
from magbatch.spec.secrets import HIDDEN, shown
from magbatch.spec.section import NEW, Section
from magbatch.spec.sections_input import MAX_SHARD_ROWS, MIN_SHARD_ROWS, InputSpec, PromptSpec
from magbatch.spec.sections_model import AnswerSpec, ModelSpec, ReasoningSpec, ReplicasSpec, SamplingSpec
from magbatch.spec.sections_output import CostSpec, LimitsSpec, MetricsSpec, OutputSpec, ScheduleSpec

ANSWER_COLUMNS = frozenset({"extracted", "vote"})
SHARDS_PER_REPLICA = 32  # enough for even replicas even if one shard is slow
GROUPED_SHARDS_PER_REPLICA = 8  # fewest, if rows that share a prefix are kept in one shard

# Fields that may change between two runs of one job, because they change no answer. The plan freezes some of them.
FREE_FIELDS = frozenset(
    {"name", "replicas", "metrics", "cost", "deadline", "schedule"}
    | {"output.commit_interval_s", "output.commit_rows", "output.patience_s"}
    | {"limits.max_failed_rows", "limits.row_timeout_s", "limits.answer_timeout_s", "input.fetch_timeout_s"}
    | {"input.fetch_from", "input.fetch_private"}
    | {"limits.image_timeout_s", "limits.document_timeout_s", "limits.document_memory_mb"}
    | {"input.shard_rows", "input.group", "input.on_bad_file", "input.incremental"}  # frozen in the plan
    | {f"model.engine_args.{name}" for name in (
        "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_memory_bytes", "enforce_eager",
        "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "enable_prefix_caching",
        "mm_processor_cache_gb", "disable_log_stats", "compilation_config",
    )}
)  # fmt: skip
ENGINE_ARGS = "model.engine_args."


class JobSpec(Section):
    """A job: its sections, in the order of the YAML file."""

    name: Annotated[
        str,
        Field(description="Short name of the job, for people and metrics: 1 to 63 letters, digits, `.`, `-` or `_`."),
    ]
    model: Annotated[ModelSpec, Field(description="Model, and the engine that runs it.")]
    input: Annotated[InputSpec, Field(description="Input rows: their files, columns and shards.")]
    prompt: Annotated[PromptSpec, Field(description="Chat built from each row.")] = PromptSpec()
    reasoning: Annotated[ReasoningSpec, Field(description="Amount of reasoning before the answer.")] = ReasoningSpec()
    answer: Annotated[AnswerSpec, Field(description="Columns derived from each answer.")] = AnswerSpec()
    sampling: Annotated[SamplingSpec, Field(description="Sampling parameters, under vLLM's names.")] = SamplingSpec()
    output: Annotated[OutputSpec, Field(description="Destination of the results, and timing of commits.")]
    replicas: Annotated[ReplicasSpec, Field(description="Number of engine replicas, and the devices of each.")] = (
        ReplicasSpec()
    )
    limits: Annotated[LimitsSpec, Field(description="Limits of each row, and of failures in the job.")] = LimitsSpec()
    metrics: Annotated[MetricsSpec, Field(description="Metrics endpoint of the running job.")] = MetricsSpec()
    cost: Annotated[CostSpec, Field(description="Price of the devices, for the report and the metrics.")] = CostSpec()
    deadline: Annotated[
        AwareDatetime | None,
        Field(
            description="Target completion time (ISO 8601 with a time zone), such as `2026-11-30T08:00:00+01:00`. "
            "Drives an alert only; the job is not stopped. null: no deadline."
        ),
    ] = None
    schedule: Annotated[
        ScheduleSpec | None,
        Field(
            description="Times at which the job runs by itself, each run into a dated output. null: the job runs only "
            "when started."
        ),
    ] = None

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
            raise ValueError("write 1 to 63 letters, digits, `.`, `-` and `_`; the first a letter or a digit")
        return value

    @field_validator("input")
    @classmethod
    def _columns_agree(cls, value: InputSpec) -> InputSpec:
        columns = value.columns
        if columns.messages and columns.prompt:
            raise ValueError("columns: set `prompt` or `messages`, not both")
        duplicates = {name for name in value.carry if value.carry.count(name) > 1}
        if duplicates:
            raise ValueError(f"carry names {sorted(duplicates)} twice")
        return value

    @model_validator(mode="after")
    def _sections_agree(self, info: ValidationInfo) -> "JobSpec":
        self._check_question()
        self._check_answer()
        if self.input.incremental and self.schedule is None:
            raise ValueError("input.incremental is for jobs that run again and again: set schedule.cron too")
        self._check_devices(new=bool((info.context or {}).get(NEW)))
        return self

    def _check_question(self) -> None:
        """Raise ValueError if a row has no question, or two."""
        columns, template = self.input.columns, self.prompt.template
        if not (columns.prompt or columns.messages or template):
            raise ValueError("nothing to ask: set input.columns.prompt, input.columns.messages or prompt.template")
        if columns.messages and template:
            raise ValueError("prompt.template cannot be used with input.columns.messages: a chat is taken as it is")

    def _check_answer(self) -> None:
        """Raise ValueError if the answer has no tokens, no columns, or columns whose names are taken."""
        budget, schema = self.reasoning.budget_tokens, self.answer.schema
        if budget is not None and budget >= self.sampling.max_tokens:
            raise ValueError(
                f"reasoning.budget_tokens ({budget}) leaves nothing of sampling.max_tokens "
                f"({self.sampling.max_tokens}) for the answer"
            )
        taken = sorted({*RESERVED_COLUMNS, *ANSWER_COLUMNS} & set(properties(schema or {})))
        if taken:
            raise ValueError(f"answer.schema: {taken} are columns of the output already; rename these properties")
        if schema is not None and not properties(schema):
            raise ValueError("answer.schema: describe an object with named properties: each becomes a column")
        if self.answer.vote is not None and self.sampling.n < 2:
            raise ValueError("answer.vote needs samples to count: set sampling.n to 2 or more")

    def _check_devices(self, *, new: bool) -> None:
        """Raise ValueError if the engine asks for other devices than its replica has."""
        sizes = {}
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            size = sizes[name] = self.model.engine_args.get(name)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"model.engine_args.{name} is a whole number of 1 or more, not {size!r}")
        gpus, stages = self.replicas.gpus, sizes["pipeline_parallel_size"] or 1
        devices = (sizes["tensor_parallel_size"] or max(1, gpus // stages)) * stages
        if not needs_weights(self.model) or devices == max(1, gpus):
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
        """Rows of a shard, for a job of `total_rows` rows.

        Each replica gets about SHARDS_PER_REPLICA shards, so that one slow shard leaves no replica idle.
        Ray's cost of a shard (20-50 ms of CPU) sets the lower bound.
        """
        if self.input.shard_rows is not None:
            return self.input.shard_rows
        share = total_rows // (self.replicas.max * SHARDS_PER_REPLICA)
        return max(MIN_SHARD_ROWS, min(MAX_SHARD_ROWS, share))

    def group_rows(self, total_rows: int) -> int:
        """Most rows of a shard that keeps rows with a common prefix together, for a job of `total_rows` rows."""
        share = total_rows // (self.replicas.max * GROUPED_SHARDS_PER_REPLICA)
        return max(self.shard_rows(total_rows), min(MAX_SHARD_ROWS, share) if self.input.shard_rows is None else 0)

    def to_yaml(self) -> str:
        """The spec as stored in the output: every field, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def with_output(self, path: str) -> "JobSpec":
        """The same job with another output."""
        return self.model_copy(update={"output": self.output.model_copy(update={"path": path})})


def differences(old: JobSpec, new: JobSpec) -> list[str]:
    """Differences that make two specs two jobs; empty if the new spec may resume the old job.

    Free fields and secrets are not compared: they change no answer.

    Returns:
        Lines `field: old -> new`, sorted by field.
    """

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
