"""The seam between magbatch and an engine: one async method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from magbatch.rows import Generation, Prompt
from magbatch.spec import SamplingSpec

# Variable with which PyTorch's allocator asks for huge pages for tensors of 2 MB and more, on CPUs.
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"

OnTokens = Callable[[int, Sequence[int]], bool]
"""Callback for the index of a sample and its new tokens. If it returns False, the sample ends there."""


@dataclass(frozen=True, slots=True)
class RequestShape:
    """The constraints of one request.

    Attributes:
        samples: Number of samples; None takes the job's sampling.n.
        stop: Id of a token that ends a sample, and is its last token.
        schema: JSON Schema that the text must fit, from its first token on.
        banned_token: Id of a token that must not be generated.
    """

    samples: int | None = None
    stop: int | None = None
    schema: dict[str, Any] | None = None
    banned_token: int | None = None


UNCONSTRAINED = RequestShape()


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """Resolved engine arguments: the two that magbatch itself computes with, and all others.

    Attributes:
        max_model_len: Context of the engine, in tokens.
        max_num_seqs: Rows that the engine answers at a time.
        more: All other arguments, by the engine's names.
    """

    max_model_len: int
    max_num_seqs: int
    more: Mapping[str, Any]

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> "EngineArgs":
        """Make the record from all arguments, by name."""
        own = ("max_model_len", "max_num_seqs")
        more = {name: value for name, value in args.items() if name not in own}
        return cls(int(args["max_model_len"]), int(args["max_num_seqs"]), more)

    def to_dict(self) -> dict[str, Any]:
        """All arguments by name, as the engine takes them and a report shows them."""
        return {"max_model_len": self.max_model_len, "max_num_seqs": self.max_num_seqs, **self.more}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Configuration from which an engine is built.

    Attributes:
        checkpoint: Directory of the model's files.
        args: Resolved engine arguments, by vLLM's names.
        sampling: Sampling parameters of the spec.
        gpus: GPUs of this replica; 0 runs on CPUs.
        counts: Whether the engine measures its load.
    """

    checkpoint: Path
    args: dict[str, Any]
    sampling: SamplingSpec
    gpus: int
    counts: bool = True


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The load of an engine at one moment.

    Attributes:
        running: Sequences that the engine works on.
        queued: Requests that wait for an engine slot.
        kv_cache_ratio: Share of the KV cache that is in use, 0 to 1.
        preemptions: Sequences put back because the KV cache was full, since the engine started.
    """

    running: int = 0
    queued: int = 0
    kv_cache_ratio: float = 0.0
    preemptions: int = 0


class Engine(Protocol):
    """An engine generates tokens for many prompts at once, and batches them by itself."""

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        """Generate all samples of one prompt. Cancelling the call aborts the request.

        Args:
            prompt: Token ids and images.
            max_tokens: Most tokens of each sample.
            seed: Seed of the sampling; None for no seed.
            on_tokens: Callback for the first token of a sample and then for each chunk. If it returns False, the sample
                ends with the tokens so far, and its finish reason is `repetition`.
            form: Constraints; by default the answer is free.

        Raises:
            RequestRejectedError: The engine refuses this prompt, and still serves.
            RequestFailedError: The engine failed at this prompt, and still serves; the request may be retried.
            EngineDeadError: The engine is gone.
        """

    def load(self) -> EngineLoad:
        """The load at the moment; zeros if `EngineConfig.counts` is off."""

    def shutdown(self) -> None:
        """End the engine and every process that belongs to it."""
