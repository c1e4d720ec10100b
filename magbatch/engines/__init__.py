"""Engines: what turns a prompt into tokens. `base` is the seam; the others are behind it.

Imports within: base, defaults, whole < fake, vllm.
"""

from typing import TYPE_CHECKING

from magbatch.engines.base import Engine, EngineConfig

if TYPE_CHECKING:
    from magbatch.model.tokenizer import Tokenizer  # a second of imports, which the board's process has no use for


def start(kind: str, config: EngineConfig, tokenizer: "Tokenizer") -> Engine:
    """Start an engine; returns when it can serve.

    Raises:
        EngineStartError: With the engine's own words.
    """
    if kind == "fake":
        from magbatch.engines.fake import FakeEngine

        return FakeEngine(config, tokenizer)
    from magbatch.engines.vllm import VllmEngine

    return VllmEngine(config)
