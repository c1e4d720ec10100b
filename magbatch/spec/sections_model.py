"""Sections about the answer: the model, its reasoning and sampling, the answer's columns, and the replicas."""

import re
import warnings
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from magbatch.spec.bounded import check_new
from magbatch.spec.schema import checked_schema, is_file, schema_at
from magbatch.spec.section import NEW, Section

NONE = "none"
WHOLE, BOXED = "whole", "boxed"
ACCELERATOR_LABEL, MARKET_LABEL = "ray.io/accelerator-type", "ray.io/market-type"  # Ray's own names
MAX_PRIORITY = 100  # largest absolute priority of a job; a cluster's owner may allow less


class ModelSpec(Section):
    """Model, and the engine that runs it."""

    source: Annotated[
        str,
        Field(
            description="Model to run: a local directory, `builtin:tiny`, a Hugging Face id, or `s3://bucket/prefix`."
        ),
    ]
    revision: Annotated[
        str | None,
        Field(
            description="Branch, tag or commit of a Hugging Face model. null: the newest commit. The plan freezes "
            "the commit."
        ),
    ] = None
    engine: Annotated[
        Literal["vllm", "fake"],
        Field(description="Inference engine. `fake` returns scripted answers, for tests and scale runs."),
    ] = "vllm"
    engine_args: dict[str, Any] = Field(
        default={},
        description="vLLM's engine arguments, under vLLM's names. An argument left out gets a default for offline "
        "batches.",
    )


class ReasoningSpec(Section):
    """Amount of reasoning before the answer."""

    budget_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="Token limit of the reasoning. At the limit, the reasoning is closed and the model answers. "
            "null: no limit except `sampling.max_tokens`.",
        ),
    ] = None
    effort: Annotated[
        Literal["none", "high"] | None,
        Field(
            description="Reasoning effort. `none`: no reasoning. `high`: for models whose tokenizer takes an effort. "
            "null: the model's own default."
        ),
    ] = None

    @model_validator(mode="after")
    def _budget_needs_reasoning(self) -> Self:
        if self.effort == "none" and self.budget_tokens is not None:
            raise ValueError("effort: none leaves nothing for budget_tokens; set one of them")
        return self


with warnings.catch_warnings():
    # `schema` was a method of pydantic 1; pydantic 2 still warns when a field takes the name.
    warnings.filterwarnings("ignore", message='Field name "schema"')

    class AnswerSpec(Section):
        """Columns derived from each answer."""

        schema: Annotated[
            dict[str, Any] | None,
            Field(
                json_schema_extra={"also": "text"},  # replaced by the schema that the text names
                description="JSON Schema of the answer; each property becomes a column. Write it inline, or name a "
                ".json or .yaml file, or `package.module:PydanticModel`. null: free text.",
            ),
        ] = None  # type: ignore[assignment]
        extract: Annotated[
            str | None,
            Field(
                description=r"Content of the column `extracted`. `whole`: the answer. `boxed`: the last `\boxed{…}`. "
                "A regular expression: its group `(?P<answer>…)`. null: no such column."
            ),
        ] = None
        vote: Annotated[
            Literal["majority"] | None,
            Field(
                description="`majority`: the column `vote` holds the answer on which most of the `sampling.n` samples "
                "agree, and its share. null: no such column."
            ),
        ] = None

        @property
        def may_refuse(self) -> bool:
            """Whether some answers may be rejected."""
            return self.schema is not None or self.extract not in (None, WHOLE, BOXED)

        @field_validator("schema", mode="before")
        @classmethod
        def _load_schema(cls, value: Any, info: ValidationInfo) -> Any:
            found = schema_at(value) if isinstance(value, str) else value
            if not isinstance(found, dict):
                return found
            if info.context is None or not info.context.get(NEW):
                return checked_schema(found)
            check_new(found, written=not isinstance(value, str) or is_file(value))
            return found

        @field_validator("extract")
        @classmethod
        def _pattern_has_answer_group(cls, value: str | None) -> str | None:
            if value in (None, WHOLE, BOXED):
                return value
            try:
                groups = re.compile(value).groupindex
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from error
            if "answer" not in groups:
                raise ValueError(f"write {WHOLE}, {BOXED}, or a regular expression with a group (?P<answer>…)")
            return value


class SamplingSpec(Section):
    """Sampling parameters, under vLLM's names."""

    temperature: Annotated[float, Field(ge=0, le=2, description="Sampling temperature. 0: greedy decoding.")] = 0.7
    top_p: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Nucleus sampling: only the likeliest tokens whose probabilities sum to this value are "
            "considered. 1: all tokens.",
        ),
    ] = 0.95
    top_k: Annotated[int, Field(ge=0, description="Number of likeliest tokens considered. 0: all tokens.")] = 0
    min_p: Annotated[
        float,
        Field(ge=0, le=1, description="Least probability of a token, relative to the likeliest token. 0: no bound."),
    ] = 0.0
    presence_penalty: Annotated[
        float, Field(ge=-2, le=2, description="Penalty on each token that has appeared in the output. 0: none.")
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        Field(ge=-2, le=2, description="Penalty on a token for each time it has appeared in the output. 0: none."),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        Field(gt=0, description="Factor against tokens that have appeared in the prompt or the output. 1: none."),
    ] = 1.0
    max_tokens: Annotated[
        int,
        Field(
            ge=1,
            description="Token limit of one sample, reasoning included. A long prompt lowers it to what the context "
            "leaves.",
        ),
    ] = 32768
    min_tokens: Annotated[int, Field(ge=0, description="Fewest tokens to generate before the model may stop.")] = 0
    ignore_eos: Annotated[
        bool,
        Field(description="true: generate up to `max_tokens` even if the model wants to stop; for benchmarks."),
    ] = False
    n: Annotated[int, Field(ge=1, le=64, description="Samples per row. Each becomes one output record.")] = 1
    seed: Annotated[
        int | None,
        Field(
            description="Seed of all sampling. With a seed, a row's sampling depends on the seed and the row id only, "
            "not on order or resume. null: not reproducible."
        ),
    ] = None

    @model_validator(mode="after")
    def _greedy_has_one_sample(self) -> Self:
        if self.temperature == 0 and self.n > 1:
            raise ValueError("n > 1 needs temperature > 0: greedy samples would all be the same")
        return self


class ShapeSpec(Section):
    """Kind of node that a replica may run on, by Ray's node labels."""

    accelerator: Annotated[
        str | None, Field(min_length=1, description="GPU type under Ray's name: H100, A100, L4 and so on. null: any.")
    ] = None
    market: Annotated[
        Literal["spot", "on-demand"] | None, Field(description="Purchase model of the node. null: either.")
    ] = None
    labels: dict[str, str] = Field(default={}, description="Further Ray node labels that must match.")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.selector:
            raise ValueError("name an accelerator, a market or labels")
        twice = sorted(self.labels.keys() & {ACCELERATOR_LABEL, MARKET_LABEL})
        if twice:
            raise ValueError(f"labels: {twice} are what `accelerator` and `market` are for")
        return self

    @property
    def selector(self) -> dict[str, str]:
        """Label of Ray -> value that a node must have."""
        own = {ACCELERATOR_LABEL: self.accelerator, MARKET_LABEL: self.market}
        return {name: value for name, value in own.items() if value is not None} | self.labels

    def __str__(self) -> str:
        more = [f"{name}={value}" for name, value in self.labels.items()]
        return " ".join([*filter(None, [self.market, self.accelerator]), *more])


class ReplicasSpec(Section):
    """Number of engine replicas, and the devices of each."""

    min: Annotated[
        int,
        Field(
            ge=0,
            description="Fewest replicas while rows wait; a job starts with this number. 0: the first replica is "
            "requested when rows wait.",
        ),
    ] = 1
    max: Annotated[int, Field(ge=1, description="Most replicas while rows wait.")] = 1
    gpus: Annotated[
        int,
        Field(
            ge=0,
            description="GPUs per replica: `tensor_parallel_size` x `pipeline_parallel_size`. 0: the engine runs on "
            "CPUs.",
        ),
    ] = 1
    cpus: Annotated[float, Field(gt=0, description="CPUs that each replica reserves in Ray.")] = 1.0
    prefer: list[ShapeSpec] = Field(
        default=[],
        description="Node kinds, best first, such as `[{accelerator: H100, market: spot}, {accelerator: A100}]`. "
        "Empty: any node.",
    )
    priority: Annotated[
        int,
        Field(
            description="Priority among the jobs of one cluster, -100 to 100. A job takes replicas from jobs of lower "
            "priority, down to their `min`."
        ),
    ] = 0
    start_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Time limit for the start of an engine, in seconds, counted from when the replica has its "
            "node.",
        ),
    ] = 1800.0

    @field_validator("priority")
    @classmethod
    def _priority_is_bounded(cls, value: int, info: ValidationInfo) -> int:
        # Earlier versions had no bounds. A stored spec stays valid; the cluster limits its priority.
        if info.context is not None and info.context.get(NEW) and abs(value) > MAX_PRIORITY:
            raise ValueError(f"write a number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
        return value

    @model_validator(mode="after")
    def _min_is_below_max(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self
