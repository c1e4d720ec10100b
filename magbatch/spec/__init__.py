"""The job spec: one YAML file says everything that a job is.

A wrong spec gets one clear message with the path of the field and what would be right, before
anything starts. Nothing here knows a credential: access comes from the standard AWS chain.

Imports within: fake_args, grammar, secrets, template, text, user_model, vllm_names < mistakes, schema < bounded <
sections < engine_args, job < columns, load.
"""

from magbatch.spec.engine_args import unchecked
from magbatch.spec.grammar import engine_schema
from magbatch.spec.job import FREE_FIELDS, JobSpec, differences
from magbatch.spec.load import load, parse
from magbatch.spec.schema import properties, resolve
from magbatch.spec.sections import (
    AUTO,
    BOXED,
    NONE,
    WHOLE,
    AnswerSpec,
    InputSpec,
    LimitsSpec,
    MetricsSpec,
    ModelSpec,
    OutputSpec,
    ReplicasSpec,
    SamplingSpec,
    ScheduleSpec,
    ShapeSpec,
    is_remote,
    reachable,
)

__all__ = [
    "AUTO",
    "BOXED",
    "FREE_FIELDS",
    "NONE",
    "WHOLE",
    "AnswerSpec",
    "InputSpec",
    "JobSpec",
    "LimitsSpec",
    "MetricsSpec",
    "ModelSpec",
    "OutputSpec",
    "ReplicasSpec",
    "SamplingSpec",
    "ScheduleSpec",
    "ShapeSpec",
    "differences",
    "engine_schema",
    "is_remote",
    "load",
    "parse",
    "properties",
    "reachable",
    "resolve",
    "unchecked",
]
