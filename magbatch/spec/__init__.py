"""The job spec: one YAML file describes a whole job.

A wrong spec is refused before anything starts. The message names each wrong field and says what to write.
A spec holds no credentials: access comes from the standard AWS chain.

Imports within: grammar, jinja, secrets, text, user_model, vllm_names < mistakes, schema, template < bounded,
fake_args, section < sections_input, sections_model, sections_output < engine_args < engines < job < columns, load,
reference.
"""

from magbatch.spec.engines import needs_weights, unchecked
from magbatch.spec.grammar import engine_schema
from magbatch.spec.job import FREE_FIELDS, JobSpec, differences
from magbatch.spec.load import load, parse
from magbatch.spec.schema import properties, resolve
from magbatch.spec.section import is_remote, reachable
from magbatch.spec.sections_input import AUTO, InputSpec
from magbatch.spec.sections_model import (
    BOXED,
    NONE,
    WHOLE,
    AnswerSpec,
    ModelSpec,
    ReplicasSpec,
    SamplingSpec,
    ShapeSpec,
)
from magbatch.spec.sections_output import LimitsSpec, MetricsSpec, OutputSpec, ScheduleSpec

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
    "needs_weights",
    "parse",
    "properties",
    "reachable",
    "resolve",
    "unchecked",
]
