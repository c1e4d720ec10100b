"""The seam between magbatch and what generates tokens: one async method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from magbatch.rows import Generation, Prompt
from magbatch.spec import SamplingSpec

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # asks for them in tensors of 2 MB and more, on CPUs (PyTorch's allocator)

OnTokens = Callable[[int, Sequence[int]], bool]
"""Is shown new tokens of a sample: its number, and the tokens. False ends the sample there."""


@dataclass(frozen=True, slots=True)
class RequestShape:
    """What is generated in one request.

    Attributes:
        samples: How many; None takes the job's sampling.n.
        stop: A token that ends a sample, and is its last one.
        schema: A JSON Schema that the text must fit, from its first token on.
        banned_token: A token that does not come.
    """

    samples: int | None = None
    stop: int | None = None
    schema: dict[str, Any] | None = None
    banned_token: int | None = None


UNCONSTRAINED = RequestShape()


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is built from.

    Attributes:
        checkpoint: The model's directory.
        args: Resolved engine arguments, by vLLM's names.
        sampling: The job's sampling parameters.
        gpus: GPUs of this replica; 0 runs on CPUs.
        counts: Whether it keeps count of its load.
    """

    checkpoint: Path
    args: dict[str, Any]
    sampling: SamplingSpec
    gpus: int
    counts: bool = True


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How an engine is at the moment.

    Attributes:
        running: Sequences that it works on.
        queued: Requests that wait for a slot in it.
        kv_cache_ratio: Share of its KV cache that is in use, 0 to 1.
        preemptions: Sequences that it put back for want of KV cache, since it started.
    """

    running: int = 0
    queued: int = 0
    kv_cache_ratio: float = 0.0
    preemptions: int = 0


class Engine(Protocol):
    """Generates tokens for many prompts at once; batching is its own affair."""

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        """All samples of one prompt. Cancelling the call aborts the request.

        Args:
            prompt: Token ids and images.
            max_tokens: Tokens that each sample may have.
            seed: Makes the sampling reproducible; None leaves it free.
            form: What is generated, where it is not a whole free answer.
            on_tokens: Is called with a sample's first token and then now and then; where it returns
                False, the sample ends with the tokens so far, as `repetition`.

        Raises:
            RequestRejectedError: The engine refuses this prompt and serves on.
            RequestFailedError: It took it, failed at it by itself, and serves on: asked again, it may answer.
            EngineDeadError: The engine is gone.
        """

    def load(self) -> EngineLoad:
        """How it is at the moment; of an engine that was told not to keep count, nothing."""

    def shutdown(self) -> None:
        """End the engine and every process that belongs to it."""
