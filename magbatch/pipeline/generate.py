"""Prompt -> tokens, in a vLLM replica.

Two promises. A row's sampling depends on the job's seed and the row's id alone: neither order nor
resume changes what is asked of the engine. And the engine always has work at hand, while memory
stays bounded: admission counts unfinished rows and their bytes, over all shards of the replica.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from magbatch.engines.base import UNCONSTRAINED, Engine, RequestShape
from magbatch.errors import ErrorCode, ModelError, RequestFailedError, RequestRejectedError, RowError
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.repetition import RepetitionGuard
from magbatch.rows import Completion, Generation, Prompt, ReasoningStatus, as_ids
from magbatch.spec import JobSpec, SamplingSpec, engine_schema

ANSWER_TOKENS = 1024  # of the context, kept from a thinking budget that would take it whole
OBJECTION = "That answer is not valid: {objection}. Give the whole answer again."
REQUEST_TRIES = 3  # of what the engine itself gives up, as vLLM does where an image is to be sent once more


OnNew = Callable[[int, Sequence[int]], None]
"""Is shown new tokens of a sample: its number, and the tokens."""

RequestMonitor = Callable[[RequestShape], AbstractContextManager[OnNew]]
"""Entered with what is asked for, while a request is under way; what it gives is shown the tokens as they come."""


@contextmanager
def unwatched(form: RequestShape) -> Iterator[OnNew]:
    """A watch that nobody keeps."""
    yield lambda sample, new: None


def row_seed(seed: int | None, row_id: str) -> int | None:
    """The engine's seed for one row: 63 bits of BLAKE2b over the job's seed and the row's id."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class ThinkingPlan:
    """How thinking and answer are asked for apart, where one free request would not do.

    Attributes:
        tokenizer: The model's.
        budget_tokens: Of thinking, then it is closed; None lets it think.
        thinks: Whether it thinks at all.
        schema: A JSON Schema for the engine, which the answer must fit; the thinking never does.
    """

    tokenizer: Tokenizer
    budget_tokens: int | None
    thinks: bool
    schema: dict[str, Any] | None

    @property
    def silence(self) -> list[int]:
        """The closed think block of a prompt after which nothing is thought."""
        block = (self.tokenizer.think_open, self.tokenizer.think_close)
        return [token for token in block if token is not None]

    @classmethod
    def of(cls, spec: JobSpec, tokenizer: Tokenizer) -> Self | None:
        """What a job asks for; None where one request gives all.

        Raises:
            ModelError: The model has no tokens that open and close thinking.
        """
        budget, schema = spec.reasoning.budget_tokens, spec.answer.schema
        silent = spec.reasoning.effort == "none" and not tokenizer.takes_effort
        if budget is None and schema is None and not silent:
            return None
        if tokenizer.think_open is None and budget is not None:
            raise ModelError("reasoning.budget_tokens: this model's tokenizer has no [THINK]; leave it out")
        told = engine_schema(schema) if schema is not None else None
        return cls(tokenizer, budget, not silent and tokenizer.think_open is not None, told)


class Generate:
    """Asks the engine, one row at a time.

    Args:
        engine: Where the tokens come from.
        sampling: The job's sampling parameters.
        max_model_len: Tokens that the engine can hold for one row.
        repetition_tokens: Tokens of pure repetition after which a sample is ended; None never ends it.
        steering: Thinking first and then the answer, in two requests: the prefix cache makes the second cheap.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: SamplingSpec,
        max_model_len: int,
        repetition_tokens: int | None = None,
        steering: ThinkingPlan | None = None,
    ) -> None:
        self._engine = engine
        self._sampling = sampling
        self._max_model_len = max_model_len
        self._repetition_tokens = repetition_tokens
        self._steering = steering
        # Of notes the schema is not asked, and where nothing but the schema steers, nothing is left to steer.
        bare = steering is not None and steering.budget_tokens is None and steering.thinks
        self._notes_steering = replace(steering, schema=None) if steering is not None and not bare else None

    async def __call__(self, prompt: Prompt, watch: RequestMonitor = unwatched, *, note: bool = False) -> Generation:
        """All samples of one row.

        Args:
            prompt: The row.
            watch: Is entered for each request that is made for it.
            note: The answer is one that a later prompt is made of: one sample, held to no schema.

        Raises:
            RowError: `engine_rejected`, or `prompt_too_long` for thinking and answer.
            EngineDeadError: The engine is gone.
        """
        how = self._notes_steering if note else self._steering
        samples = 1 if note else None
        seed = row_seed(self._sampling.seed, prompt.row_id)
        if how is None:
            return await self._ask(prompt, self._most(prompt), seed, watch, RequestShape(samples))
        if not how.thinks:
            silent = replace(prompt, token_ids=prompt.token_ids + as_ids(how.silence))
            return await self._ask(silent, self._most(prompt), seed, watch, self._answer_form(samples, how))
        return await self._think_then_answer(prompt, how, watch, samples)

    async def retry_answer(
        self, prompt: Prompt, sample: int, completion: Completion, objection: str, watch: RequestMonitor = unwatched
    ) -> Completion:
        """Ask again after the same thinking, telling the model why its first answer was rejected.

        Args:
            prompt: The row.
            sample: Number of the sample: the seed depends on it.
            completion: The sample that was not accepted.
            objection: What is wrong with its answer.
            watch: Is entered for each request that is made for it.

        Raises:
            RowError: As for `__call__`.
            EngineDeadError: The engine is gone.
        """
        how = self._steering
        assert how is not None, "only a steered answer is held against a schema"
        tokenizer, generated = how.tokenizer, completion.token_ids
        said = how.silence if not how.thinks else [tokenizer.think_open] if completion.opened else []
        turn = [
            tokenizer.turn_open,
            *tokenizer.encode_text(OBJECTION.format(objection=objection)),
            tokenizer.turn_close,
        ]
        ends = [] if generated[-1:] == [tokenizer.end] else [tokenizer.end]
        more = [token for token in [*said, *generated, *ends, *turn] if token is not None]
        asked = replace(prompt, token_ids=prompt.token_ids + as_ids(more))
        seed = row_seed(self._sampling.seed, f"{prompt.row_id}/{sample}/again")
        answer = (await self._ask(asked, self._most(prompt), seed, watch, self._answer_form(1, how))).completions[0]
        closed = [*generated].index(tokenizer.think_close or 0) + 1 if completion.opened else 0
        return replace(completion, token_ids=generated[:closed] + answer.token_ids, finish_reason=answer.finish_reason)

    async def _think_then_answer(
        self, prompt: Prompt, how: ThinkingPlan, watch: RequestMonitor, samples: int | None
    ) -> Generation:
        opening, closing = how.tokenizer.think_open, how.tokenizer.think_close
        assert opening is not None
        assert closing is not None
        began = time.monotonic()
        room = self._max_model_len - len(prompt.token_ids) - 2  # for the two tokens around the thinking
        kept = min(ANSWER_TOKENS, room // 2) if how.budget_tokens is not None else 1
        tokens = self._most(prompt)
        if tokens < 2:
            raise RowError(ErrorCode.MISSING_VALUE, "1 token is too few to think and answer: 2 are the least")
        most = min(how.budget_tokens or tokens, tokens - 1, room - kept)
        if most < 1:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt has {len(prompt.token_ids)} tokens: nothing of {self._max_model_len} is left to think",
            )
        opened = replace(prompt, token_ids=prompt.token_ids + as_ids([opening]))
        seed = row_seed(self._sampling.seed, prompt.row_id)
        thoughts = await self._ask(opened, most, seed, watch, RequestShape(samples, stop=closing))
        finished = await asyncio.gather(
            *(
                self._answer_after(opened, sample, thought, how, watch)
                for sample, thought in enumerate(thoughts.completions)
            )
        )
        return Generation(list(finished), thoughts.cached_tokens, time.monotonic() - began)

    async def _answer_after(
        self, opened: Prompt, sample: int, thought: Completion, how: ThinkingPlan, watch: RequestMonitor
    ) -> Completion:
        """One sample: its answer, after thinking that closed itself, or that is closed here."""
        closing = how.tokenizer.think_close
        assert closing is not None
        thinking = [token for token in thought.token_ids if token not in (closing, how.tokenizer.end)]
        status, forced = ReasoningStatus.COMPLETE, 0
        if thought.token_ids[-1:] != [closing]:
            forced = 1
            if thought.finish_reason == "stop":
                status = ReasoningStatus.MALFORMED  # it ended its turn in the middle of its thinking
            elif how.budget_tokens is not None:
                status = ReasoningStatus.BUDGET
            else:
                return Completion(thinking, thought.finish_reason, opened=True, status=ReasoningStatus.TRUNCATED)
        thinking.append(closing)
        asked = replace(opened, token_ids=opened.token_ids + as_ids(thinking))
        seed = row_seed(self._sampling.seed, f"{opened.row_id}/{sample}")
        left = self._most(opened) - len(thinking) + forced
        generation = await self._ask(asked, left, seed, watch, self._answer_form(1, how))
        (answer,) = generation.completions
        return Completion(thinking + answer.token_ids, answer.finish_reason, opened=True, forced=forced, status=status)

    def _most(self, prompt: Prompt) -> int:
        """Tokens that a sample of a row may have."""
        most = self._sampling.max_tokens
        return most if prompt.max_tokens is None else min(prompt.max_tokens, most)

    @staticmethod
    def _answer_form(samples: int | None, how: ThinkingPlan) -> RequestShape:
        """An answer: what is held to a schema cannot think again; what is free must not, or no budget would be one."""
        return RequestShape(
            samples, schema=how.schema, banned_token=how.tokenizer.think_open if how.schema is None else None
        )

    async def _ask(
        self,
        prompt: Prompt,
        max_tokens: int,
        seed: int | None,
        watch: RequestMonitor,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        """What one request gives, cut to what the context leaves."""
        limit = min(max_tokens, self._max_model_len - len(prompt.token_ids))
        if limit < 1:
            raise RowError(ErrorCode.PROMPT_TOO_LONG, f"nothing of {self._max_model_len} tokens is left for an answer")
        began = time.monotonic()
        failed: RequestFailedError | None = None
        for _ in range(REQUEST_TRIES):  # by hand: every row comes through here, and nothing is waited for
            try:
                generation = await self._try(prompt, limit, seed, watch, form)
            except RequestFailedError as error:
                failed = error
            except RequestRejectedError as error:
                raise RowError(ErrorCode.ENGINE_REJECTED, str(error)) from error
            else:
                return generation if failed is None else replace(generation, latency_s=time.monotonic() - began)
        raise RowError(ErrorCode.ENGINE_REJECTED, f"asked {REQUEST_TRIES} times: {failed}") from failed

    async def _try(
        self, prompt: Prompt, max_tokens: int, seed: int | None, watch: RequestMonitor, form: RequestShape
    ) -> Generation:
        guard = RepetitionGuard(self._repetition_tokens)  # of this try: what one before it said is not repeated by it
        with watch(form) as see:

            def on_tokens(sample: int, new: Sequence[int]) -> bool:
                see(sample, new)
                return guard(sample, new)

            return await self._engine.generate(prompt, max_tokens=max_tokens, seed=seed, on_tokens=on_tokens, form=form)
