"""Engines turn a prompt into tokens. `base` is the seam; vLLM and a scripted fake are behind it.

Imports within: base, defaults, whole < fake, vllm.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from magbatch.engines.base import Engine, EngineArgs, EngineConfig
from magbatch.engines.defaults import fake_args, vllm_args
from magbatch.model.facts import ModelFacts
from magbatch.spec import JobSpec

if TYPE_CHECKING:
    from magbatch.model.tokenizer import Tokenizer  # a second of imports, which the board's process does not need


def _vllm(config: EngineConfig, tokenizer: "Tokenizer") -> Engine:
    from magbatch.engines.vllm import VllmEngine

    return VllmEngine(config)


def _fake(config: EngineConfig, tokenizer: "Tokenizer") -> Engine:
    from magbatch.engines.fake import FakeEngine

    return FakeEngine(config, tokenizer)


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine, and the arguments that it starts with.

    Attributes:
        start: Starts the engine, and returns when it can serve. It imports the engine's library.
        args: Takes a spec, facts about its model and hints of its plan; returns the resolved arguments.
    """

    start: Callable[[EngineConfig, "Tokenizer"], Engine]
    args: Callable[[JobSpec, ModelFacts, Mapping[str, Any] | None], dict[str, Any]]


# The names of `model.engine`. Checks that start no engine have their own table of the same names, in `spec/engines.py`.
ENGINES = {"vllm": EngineKind(_vllm, vllm_args), "fake": EngineKind(_fake, fake_args)}


def engine_args(spec: JobSpec, model: ModelFacts, hints: Mapping[str, Any] | None = None) -> EngineArgs:
    """Resolve the engine's arguments: the spec's own, then hints of the plan, then offline defaults.

    Args:
        spec: Spec of the job, for `model.engine_args`, lengths and devices.
        model: Facts from the model's configuration.
        hints: Engine arguments that suit the job's input; see `Plan.engine_hints`.

    Raises:
        SpecError: vLLM would not start with the spec's own arguments, or would crash on the job's seed.
    """
    return EngineArgs.of(ENGINES[spec.model.engine].args(spec, model, hints))


def start(kind: str, config: EngineConfig, tokenizer: "Tokenizer") -> Engine:
    """Start an engine, and return when it can serve.

    Args:
        kind: Name of the engine, as in `model.engine`.
        config: Checkpoint, resolved arguments, sampling.
        tokenizer: Mistral's tokenizer of the model, for the fake.

    Raises:
        EngineStartError: The engine did not start; the message has the engine's own error.
    """
    return ENGINES[kind].start(config, tokenizer)
