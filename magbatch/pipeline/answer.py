"""One row asked: its prompt through generate, parse and check, to a row that is ready to be written.

A document that is read in parts is asked about part by part, and then once over the answers to them: one row comes
out, which counts the tokens of all its requests.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from magbatch.answers import AnswerError, Checker
from magbatch.engines.base import RequestShape
from magbatch.errors import EngineDeadError, ErrorCode, RowError, Step
from magbatch.pipeline.generate import Generate, OnNew
from magbatch.pipeline.meter import Meter
from magbatch.pipeline.parse import Parser
from magbatch.pipeline.prompt import Prompter
from magbatch.rows import (
    Answer,
    Completion,
    DeadLetter,
    FinishedRow,
    Generation,
    PageGroup,
    PageGroupAnswer,
    Prompt,
    ReasoningStatus,
)

T = TypeVar("T")
Alive = Callable[[], AbstractContextManager[Callable[[], None]]]
"""Entered while a request is under way; what it gives is called whenever tokens of it have come."""


@dataclass(slots=True)
class Progress:
    """Where a row is, and what it took to get there.

    Attributes:
        alive: Is entered for each request that is made for the row.
        step: The step that it has reached.
        meter: Tokens of its requests.
    """

    alive: Alive = lambda: nullcontext(lambda: None)
    step: Step = Step.GENERATE
    meter: Meter = field(default_factory=Meter)

    @contextmanager
    def watch(self, form: RequestShape) -> Iterator[OnNew]:
        """See `RequestMonitor`: one request of the row."""
        count = self.meter.request(form)
        with self.alive() as pulse:

            def observe(sample: int, new: Sequence[int]) -> None:
                pulse()
                count(sample, new)

            yield observe

    def letter(self, row_id: str, code: ErrorCode, message: str, answer: str | None = None) -> DeadLetter:
        """The row's dead letter, with the tokens that it took all the same."""
        meter = self.meter
        return DeadLetter(
            row_id, self.step, code, message, answer,
            meter.prompt_tokens, meter.cached_tokens, meter.reasoning_tokens, meter.answer_tokens,
        )  # fmt: skip


@dataclass(slots=True)
class _Cost:
    """What a row took so far: tokens of its parts, seconds, and what its parts said."""

    reasoning_tokens: int = 0
    answer_tokens: int = 0
    latency_s: float = 0.0
    findings: list[PageGroupAnswer] = field(default_factory=list)
    truncated: bool = False


class RowAnswerer:
    """Asks rows.

    Args:
        generate: Prompt -> tokens.
        parse: Tokens -> reasoning and answer.
        check: Answer -> the job's own columns.
        samples: Of each row.
        prompter: Makes the prompts over the answers to a document's parts.
    """

    def __init__(self, generate: Generate, parse: Parser, check: Checker, samples: int, prompter: Prompter) -> None:
        self._generate, self._parse, self._check, self._samples = generate, parse, check, samples
        self._prompter = prompter

    def progress(self, alive: Alive) -> Progress:
        """The state of a row before its first request."""
        return Progress(alive, meter=Meter(*self._parse.thinking))

    async def __call__(self, prompt: Prompt, progress: Progress) -> FinishedRow:
        """All samples of one row.

        Raises:
            RowError: Why it has no answer.
            EngineDeadError: The engine is gone.
        """
        cost = _Cost(findings=[PageGroupAnswer(part.first_page, part.last_page) for part in prompt.page_groups])
        asked, began = prompt, time.monotonic()
        if prompt.reads_page_groups:
            found = await self._read_parts(prompt, progress, cost)
            if found is None:
                return self._unanswered(prompt, cost, progress.meter)
            asked = found
        progress.step = Step.GENERATE
        generation = await self._asked(asked, progress)
        progress.step = Step.PARSE
        answers = [self._parse(completion) for completion in generation.completions]
        progress.step = Step.CHECK
        answers = await _all_at_once(
            self._checked(asked, sample, completion, answer, progress)
            for sample, (completion, answer) in enumerate(zip(generation.completions, answers, strict=True))
        )
        cost.latency_s = time.monotonic() - began if prompt.reads_page_groups else generation.latency_s
        return self._finished(prompt, answers, cost, progress.meter)

    async def _asked(self, prompt: Prompt, progress: Progress, *, note: bool = False) -> Generation:
        """What the engine gives for a prompt, which counts from here on whatever comes of it."""
        progress.meter.prompt_tokens += len(prompt.token_ids)
        generation = await self._generate(prompt, progress.watch, note=note)
        progress.meter.cached_tokens += generation.cached_tokens
        return generation

    def _finished(self, prompt: Prompt, answers: list[Answer], cost: _Cost, meter: Meter) -> FinishedRow:
        vote = self._check.vote([answer.ballot for answer in answers])
        # What the parts took is no sample's own: the first has it, so that sums over a row are right.
        first = answers[0]
        if cost.reasoning_tokens or cost.answer_tokens:
            answers[0] = replace(
                first,
                reasoning_tokens=first.reasoning_tokens + cost.reasoning_tokens,
                answer_tokens=first.answer_tokens + cost.answer_tokens,
            )
        return FinishedRow(
            prompt.row_id, meter.prompt_tokens, meter.cached_tokens, cost.latency_s, answers, datetime.now(UTC), vote,
            prompt.total_pages, cost.findings, prompt.truncated or cost.truncated,
        )  # fmt: skip

    def _unanswered(self, prompt: Prompt, cost: _Cost, meter: Meter) -> FinishedRow:
        """A document no part of which was answered: there is nothing to ask over."""
        truncated = Answer(None, ReasoningStatus.TRUNCATED, None, "length", 0, 0)
        return self._finished(prompt, [truncated] * self._samples, cost, meter)

    async def _checked(
        self, prompt: Prompt, sample: int, completion: Completion, answer: Answer, progress: Progress
    ) -> Answer:
        """An answer with what the job has it made into; one that does not fit the schema is asked for once more."""
        try:
            reading = await self._check(answer.answer)
            return replace(answer, values=reading.values, ballot=reading.ballot)
        except AnswerError as error:
            objection = str(error)
        second = self._parse(await self._generate.retry_answer(prompt, sample, completion, objection, progress.watch))
        try:
            if second.answer is None:
                raise AnswerError(f"{objection}; the second answer is empty")
            reading = await self._check(second.answer)
        except AnswerError as error:
            raise RowError(ErrorCode.ANSWER_INVALID, f"answer.schema: {error}", answer=second.answer) from error
        # Both answers were paid for.
        tokens = answer.answer_tokens + second.answer_tokens
        return replace(second, values=reading.values, ballot=reading.ballot, answer_tokens=tokens)

    # Documents in parts.

    async def _read_parts(self, prompt: Prompt, progress: Progress, cost: _Cost) -> Prompt | None:
        """The prompt over the answers to all parts; None where no part has an answer."""
        findings = await self._notes(prompt, prompt.page_groups, progress, cost, "part")
        cost.findings = findings
        for level in range(len(findings)):  # each level has fewer findings than the one before
            if not any(finding.answer for finding in findings):
                return None
            progress.step = Step.PROMPT
            parts = self._prompter.combine(prompt, findings)
            cost.truncated |= any(part.truncated for part in parts)
            if len(parts) == 1:
                return replace(prompt, token_ids=parts[0].token_ids, images=parts[0].images)
            progress.step = Step.GENERATE
            findings = await self._notes(prompt, parts, progress, cost, f"level{level}")
        raise AssertionError("findings are combined into fewer, down to one")

    async def _notes(
        self, prompt: Prompt, parts: list[PageGroup], progress: Progress, cost: _Cost, name: str
    ) -> list[PageGroupAnswer]:
        """The answers to parts, all asked at once."""
        return await _all_at_once(
            self._note(prompt, part, progress, cost, f"{name}{number}") for number, part in enumerate(parts)
        )

    async def _note(
        self, prompt: Prompt, part: PageGroup, progress: Progress, cost: _Cost, name: str
    ) -> PageGroupAnswer:
        # A name of its own: seeds depend on it.
        asked = Prompt(f"{prompt.row_id}/{name}", part.token_ids, part.images, max_tokens=prompt.max_tokens)
        generation = await self._asked(asked, progress, note=True)
        answer = self._parse(generation.completions[0])
        cost.reasoning_tokens += answer.reasoning_tokens
        cost.answer_tokens += answer.answer_tokens
        return PageGroupAnswer(part.first_page, part.last_page, answer.reasoning, answer.status, answer.answer)


async def _all_at_once(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; if one fails, the others are cancelled and its error goes up."""
    first, *others = work
    if not others:
        return [await first]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in (first, *others)]
    except BaseExceptionGroup as failed:  # an engine that is gone says most
        dead = [error for error in failed.exceptions if isinstance(error, EngineDeadError)]
        raise [*dead, *failed.exceptions][0] from failed
    return [task.result() for task in tasks]
