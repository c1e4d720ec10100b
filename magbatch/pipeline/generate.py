"""Prompt -> generated tokens, asked of the engine.

The sampling of a row depends only on the job's seed and the row's id: neither the order of rows nor a resume changes
the requests.
"""

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace
from typing import Any, Self

from magbatch.engines.base import Engine, RequestShape
from magbatch.errors import ErrorCode, ModelError, RowError
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.request import RequestMonitor, Requests, unwatched
from magbatch.rows import Completion, Generation, Prompt, ReasoningStatus, as_ids
from magbatch.spec import JobSpec, SamplingSpec, engine_schema

ANSWER_TOKENS = 1024  # tokens kept for the answer if a reasoning budget would fill the whole context
OBJECTION = "That answer is not valid: {objection}. Give the whole answer again."  # the model reads it


def row_seed(seed: int | None, row_id: str) -> int | None:
    """The engine's seed for one row: 63 bits of BLAKE2b over the job's seed and the row's id."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, slots=True)
class ThinkingPlan:
    """Settings of a job whose reasoning and answer take two requests, because one free request is not enough.

    Attributes:
        tokenizer: Mistral's tokenizer of the model, for the tokens that open and close reasoning.
        budget_tokens: Tokens of reasoning, after which it is closed; None for no limit.
        thinks: Whether the model reasons at all.
        schema: JSON Schema that the answer must fit, for the engine; None for a free answer. Reasoning is always free.
    """

    tokenizer: Tokenizer
    budget_tokens: int | None
    thinks: bool
    schema: dict[str, Any] | None

    @property
    def silence(self) -> list[int]:
        """Ids of an empty think block: a prompt that ends with it gets an answer without reasoning."""
        block = (self.tokenizer.think_open, self.tokenizer.think_close)
        return [token for token in block if token is not None]

    @classmethod
    def of(cls, spec: JobSpec, tokenizer: Tokenizer) -> Self | None:
        """The plan of a job; None if one free request is enough.

        Raises:
            ModelError: The model has no tokens that open and close reasoning.
        """
        budget, schema = spec.reasoning.budget_tokens, spec.answer.schema
        silent = spec.reasoning.effort == "none" and not tokenizer.takes_effort
        if budget is None and schema is None and not silent:
            return None
        if tokenizer.think_open is None and budget is not None:
            raise ModelError("reasoning.budget_tokens: this model's tokenizer has no [THINK]; remove the setting")
        told = engine_schema(schema) if schema is not None else None
        return cls(tokenizer, budget, not silent and tokenizer.think_open is not None, told)


class Generate:
    """Sender of the requests of rows.

    With a plan, a row takes two requests: first the reasoning, then the answer after it. The engine's prefix
    cache makes the second request cheap.

    Args:
        engine: Engine to which the requests go.
        sampling: Sampling parameters of the spec.
        max_model_len: Tokens that the engine can hold for one row, prompt included.
        repetition_tokens: Tokens of pure repetition after which a sample is ended; None for no limit.
        plan: Plan for reasoning and answer in two requests; None for one free request.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: SamplingSpec,
        max_model_len: int,
        repetition_tokens: int | None = None,
        plan: ThinkingPlan | None = None,
    ) -> None:
        self._ask = Requests(engine, max_model_len, repetition_tokens)
        self._sampling, self._max_model_len, self._plan = sampling, max_model_len, plan
        # Notes have no schema. A plan that sets nothing but the schema leaves one free request for them.
        only_schema = plan is not None and plan.budget_tokens is None and plan.thinks
        self._notes_plan = replace(plan, schema=None) if plan is not None and not only_schema else None

    async def __call__(self, prompt: Prompt, watch: RequestMonitor = unwatched, *, note: bool = False) -> Generation:
        """Generate all samples of a row.

        Args:
            prompt: Prompt of the row, as token ids and images.
            watch: Monitor that is entered for each request of the row.
            note: Whether the answer is a note for a later prompt: one sample without a schema.

        Raises:
            RowError: `engine_rejected`; `prompt_too_long` if no room is left for reasoning and answer; `missing_value`
                if the row allows too few tokens.
            EngineDeadError: The engine is gone.
        """
        plan = self._notes_plan if note else self._plan
        samples = 1 if note else None
        seed = row_seed(self._sampling.seed, prompt.row_id)
        if plan is None:
            return await self._ask(prompt, self._most(prompt), seed, watch, RequestShape(samples))
        if not plan.thinks:
            silent = replace(prompt, token_ids=prompt.token_ids + as_ids(plan.silence))
            return await self._ask(silent, self._most(prompt), seed, watch, self._answer_shape(samples, plan))
        return await self._think_then_answer(prompt, plan, watch, samples)

    async def retry_answer(
        self, prompt: Prompt, sample: int, completion: Completion, objection: str, watch: RequestMonitor = unwatched
    ) -> Completion:
        """Ask again after the same reasoning, telling the model why its first answer was rejected.

        Args:
            prompt: Prompt of the row, as token ids and images.
            sample: Number of the sample, from 0: the seed depends on it.
            completion: Sample whose answer was rejected.
            objection: Reason in words, for the model.
            watch: Monitor that is entered for the request.

        Returns:
            The sample with the new answer after the same reasoning.

        Raises:
            RowError: The request fails as in `__call__`.
            EngineDeadError: The engine is gone.
        """
        plan = self._plan
        assert plan is not None, "an answer is held to a schema only with a plan"
        tokenizer, generated = plan.tokenizer, completion.token_ids
        opening = plan.silence if not plan.thinks else [tokenizer.think_open] if completion.opened else []
        turn = [
            tokenizer.turn_open,
            *tokenizer.encode_text(OBJECTION.format(objection=objection)),
            tokenizer.turn_close,
        ]
        ends = [] if generated[-1:] == [tokenizer.end] else [tokenizer.end]
        more = [token for token in [*opening, *generated, *ends, *turn] if token is not None]
        asked = replace(prompt, token_ids=prompt.token_ids + as_ids(more))
        seed = row_seed(self._sampling.seed, f"{prompt.row_id}/{sample}/again")
        answer = (await self._ask(asked, self._most(prompt), seed, watch, self._answer_shape(1, plan))).completions[0]
        closed = [*generated].index(tokenizer.think_close or 0) + 1 if completion.opened else 0
        return replace(completion, token_ids=generated[:closed] + answer.token_ids, finish_reason=answer.finish_reason)

    async def _think_then_answer(
        self, prompt: Prompt, plan: ThinkingPlan, watch: RequestMonitor, samples: int | None
    ) -> Generation:
        """Generate the reasoning of all samples in one request, then the answer of each sample in its own request."""
        opening, closing = plan.tokenizer.think_open, plan.tokenizer.think_close
        assert opening is not None
        assert closing is not None
        began = time.monotonic()
        room = self._max_model_len - len(prompt.token_ids) - 2  # the tokens that open and close reasoning
        kept = min(ANSWER_TOKENS, room // 2) if plan.budget_tokens is not None else 1
        tokens = self._most(prompt)
        if tokens < 2:
            raise RowError(
                ErrorCode.MISSING_VALUE, "max_tokens of this row is 1: reasoning and answer need at least 2 tokens"
            )
        most = min(plan.budget_tokens or tokens, tokens - 1, room - kept)
        if most < 1:
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"max_model_len = {self._max_model_len} leaves no room for reasoning after a prompt of "
                f"{len(prompt.token_ids)} tokens",
            )
        opened = replace(prompt, token_ids=prompt.token_ids + as_ids([opening]))
        seed = row_seed(self._sampling.seed, prompt.row_id)
        reasoned = await self._ask(opened, most, seed, watch, RequestShape(samples, stop=closing))
        finished = await asyncio.gather(
            *(
                self._answer_after(opened, sample, reasoning, plan, watch)
                for sample, reasoning in enumerate(reasoned.completions)
            )
        )
        return Generation(list(finished), reasoned.cached_tokens, time.monotonic() - began)

    async def _answer_after(
        self, opened: Prompt, sample: int, reasoning: Completion, plan: ThinkingPlan, watch: RequestMonitor
    ) -> Completion:
        """Generate the answer of a sample. Reasoning that the model did not close is closed first."""
        closing = plan.tokenizer.think_close
        assert closing is not None
        ids = [token for token in reasoning.token_ids if token not in (closing, plan.tokenizer.end)]
        status, forced = ReasoningStatus.COMPLETE, 0
        if reasoning.token_ids[-1:] != [closing]:
            forced = 1
            if reasoning.finish_reason == "stop":
                status = ReasoningStatus.MALFORMED  # the model ended its turn in the middle of its reasoning
            elif plan.budget_tokens is not None:
                status = ReasoningStatus.BUDGET
            else:
                return Completion(ids, reasoning.finish_reason, opened=True, status=ReasoningStatus.TRUNCATED)
        ids.append(closing)
        asked = replace(opened, token_ids=opened.token_ids + as_ids(ids))
        seed = row_seed(self._sampling.seed, f"{opened.row_id}/{sample}")
        left = self._most(opened) - len(ids) + forced
        generation = await self._ask(asked, left, seed, watch, self._answer_shape(1, plan))
        (answer,) = generation.completions
        return Completion(ids + answer.token_ids, answer.finish_reason, opened=True, forced=forced, status=status)

    def _most(self, prompt: Prompt) -> int:
        """Tokens that a sample of the row may have: the row's own limit, or the job's if that is lower."""
        most = self._sampling.max_tokens
        return most if prompt.max_tokens is None else min(prompt.max_tokens, most)

    @staticmethod
    def _answer_shape(samples: int | None, plan: ThinkingPlan) -> RequestShape:
        """The shape of a request for an answer, in which the model cannot reason again and so exceed the budget.

        An answer with a schema cannot open reasoning; for a free answer, the opening token is banned.
        """
        banned = plan.tokenizer.think_open if plan.schema is None else None
        return RequestShape(samples, schema=plan.schema, banned_token=banned)
