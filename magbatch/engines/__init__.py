"""Engines turn a prompt into tokens. `base` is the seam; vLLM and a scripted fake are behind it.

Imports within: base, defaults, whole < fake, vllm.
"""

from typing import TYPE_CHECKING

from magbatch.engines.base import Engine, EngineConfig

if TYPE_CHECKING:
    from magbatch.model.tokenizer import Tokenizer  # a second of imports, which the board's process does not need


def start(kind: str, config: EngineConfig, tokenizer: "Tokenizer") -> Engine:
    """Start an engine, and return when it can serve.

    Args:
        kind: `vllm` or `fake`.
        config: Checkpoint, resolved arguments, sampling.
        tokenizer: The model's tokenizer, for the fake.

    Raises:
        EngineStartError: The engine did not start; the message has the engine's own words.
    """
    if kind == "fake":
        from magbatch.engines.fake import FakeEngine

        return FakeEngine(config, tokenizer)
    from magbatch.engines.vllm import VllmEngine

    return VllmEngine(config)
