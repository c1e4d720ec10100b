"""Facts that a spec needs about each engine of `model.engine`. `magbatch/engines/` starts the same names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from magbatch.spec.engine_args import PATH, count_mistakes, vllm_mistakes, vllm_notes
from magbatch.spec.fake_args import fake_mistakes
from magbatch.spec.mistakes import Written
from magbatch.spec.sections_model import ModelSpec


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The checks of an engine's part of a spec. None of them starts the engine.

    Attributes:
        mistakes: Takes `model.engine_args` and the values as written; returns a line `name: mistake` for each mistake.
        notes: Takes `model.engine_args`; returns a line for each argument that could not be checked.
        needs_weights: Whether the engine loads the model's weights, spread over all devices of its replica.
    """

    mistakes: Callable[[dict[str, Any], Written], list[str]]
    notes: Callable[[dict[str, Any]], list[str]]
    needs_weights: bool


ENGINES = {
    "vllm": EngineFacts(vllm_mistakes, vllm_notes, needs_weights=True),
    "fake": EngineFacts(fake_mistakes, lambda _: [], needs_weights=False),
}


def engine_mistakes(engine: object, args: object, written: Written) -> list[str]:
    """Describe each wrong engine argument in one line.

    Args:
        engine: Value of `model.engine`. An unknown name is reported elsewhere.
        args: Value of `model.engine_args`, as YAML gives it.
        written: See `Written`; takes paths below `model.engine_args`.
    """
    if not isinstance(args, dict) or not isinstance(engine, str):
        return []
    if engine in ENGINES:
        lines = ENGINES[engine].mistakes(args, written)
    else:
        lines = [f"{name}: {said}" for name, said in count_mistakes(args).items()]
    return [f"{PATH}.{line}" for line in lines]


def needs_weights(model: ModelSpec) -> bool:
    """Whether the model's engine loads its weights, spread over all devices of its replica."""
    return ENGINES[model.engine].needs_weights


def unchecked(model: ModelSpec) -> str | None:
    """Notes on engine arguments that could not be checked, one line each; None if all were checked."""
    return "\n".join(ENGINES[model.engine].notes(model.engine_args)) or None
