"""One row asked: its prompt through generate, parse and check, to a row that is ready to be written.

A document that is read in parts is asked about part by part, and then once over the answers to them: one row comes
out, which counts the tokens of all its requests.
"""

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from magbatch.answers import AnswerError, Reader
from magbatch.errors import EngineDeadError, ErrorCode, RowError, Step
from magbatch.pipeline.generate import Generate, Watch, unwatched
from magbatch.pipeline.parse import Parser
from magbatch.pipeline.prompt import Prompter
from magbatch.rows import Answer, Completion, FinishedRow, Part, PartAnswer, Prompt, ReasoningStatus


@dataclass(slots=True)
class Progress:
    """Where a row is.

    Attributes:
        watch: Is entered for each request that is made for the row.
        step: The step that it has reached.
    """

    watch: Watch = unwatched
    step: Step = Step.GENERATE


@dataclass(slots=True)
class _Cost:
    """What a row took so far: tokens, seconds, and what its parts said."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    answer_tokens: int = 0
    latency_s: float = 0.0
    findings: list[PartAnswer] = field(default_factory=list)


class Ask:
    """Asks rows.

    Args:
        generate: Prompt -> tokens.
        parse: Tokens -> reasoning and answer.
        read: Answer -> the job's own columns.
        samples: Of each row.
        prompter: Makes the prompts over the answers to a document's parts.
    """

    def __init__(self, generate: Generate, parse: Parser, read: Reader, samples: int, prompter: Prompter) -> None:
        self._generate, self._parse, self._read, self._samples = generate, parse, read, samples
        self._prompter = prompter

    async def __call__(self, prompt: Prompt, progress: Progress) -> FinishedRow:
        """All samples of one row.

        Raises:
            RowError: Why it has no answer.
            EngineDeadError: The engine is gone.
        """
        cost = _Cost(findings=[PartAnswer(part.first_page, part.last_page) for part in prompt.parts])
        asked, began = prompt, time.monotonic()
        if prompt.in_parts:
            found = await self._read_parts(prompt, progress, cost)
            if found is None:
                return self._unanswered(prompt, cost)
            asked = found
        progress.step = Step.GENERATE
        generation = await self._generate(asked, progress.watch)
        progress.step = Step.PARSE
        answers = [self._parse(completion) for completion in generation.completions]
        progress.step = Step.CHECK
        for sample, completion in enumerate(generation.completions):
            answers[sample] = await self._checked(asked, completion, answers[sample], progress.watch)
        cost.prompt_tokens += len(asked.token_ids)
        cost.cached_tokens += generation.cached_tokens
        cost.latency_s = time.monotonic() - began if prompt.in_parts else generation.latency_s
        return self._finished(prompt, answers, cost)

    def _finished(self, prompt: Prompt, answers: list[Answer], cost: _Cost) -> FinishedRow:
        vote = self._read.vote([(answer.answer, answer.values) for answer in answers])
        # What the parts took is no sample's own: the first has it, so that sums over a row are right.
        first = answers[0]
        if cost.reasoning_tokens or cost.answer_tokens:
            answers[0] = replace(
                first,
                reasoning_tokens=first.reasoning_tokens + cost.reasoning_tokens,
                answer_tokens=first.answer_tokens + cost.answer_tokens,
            )
        return FinishedRow(
            prompt.row_id, cost.prompt_tokens, cost.cached_tokens, cost.latency_s, answers, datetime.now(UTC), vote,
            prompt.total_pages, cost.findings,
        )  # fmt: skip

    def _unanswered(self, prompt: Prompt, cost: _Cost) -> FinishedRow:
        """A document no part of which was answered: there is nothing to ask over."""
        truncated = Answer(None, ReasoningStatus.TRUNCATED, None, "length", 0, 0)
        return self._finished(prompt, [truncated] * self._samples, cost)

    async def _checked(self, prompt: Prompt, completion: Completion, answer: Answer, watch: Watch) -> Answer:
        """An answer with what the job has it made into; one that does not fit the schema is asked for once more."""
        try:
            values = self._read(answer.answer)
            return replace(answer, values=values) if values else answer
        except AnswerError as error:
            second = self._parse(await self._generate.again(prompt, completion, str(error), watch))
        try:
            values = self._read(second.answer)
        except AnswerError as error:
            raise RowError(ErrorCode.ANSWER_INVALID, f"answer.schema: {error}", answer=second.answer) from error
        # Both answers were paid for.
        return replace(second, values=values, answer_tokens=answer.answer_tokens + second.answer_tokens)

    # Documents in parts.

    async def _read_parts(self, prompt: Prompt, progress: Progress, cost: _Cost) -> Prompt | None:
        """The prompt over the answers to all parts; None where no part has an answer."""
        findings = await self._notes(prompt, prompt.parts, progress, cost, "part")
        cost.findings = findings
        for level in range(len(findings)):  # each level has fewer findings than the one before
            if not any(finding.answer for finding in findings):
                return None
            progress.step = Step.PROMPT
            parts = self._prompter.combine(prompt, findings)
            if len(parts) == 1:
                return replace(prompt, token_ids=parts[0].token_ids, images=parts[0].images)
            progress.step = Step.GENERATE
            findings = await self._notes(prompt, parts, progress, cost, f"level{level}")
        raise AssertionError("findings are combined into fewer, down to one")

    async def _notes(
        self, prompt: Prompt, parts: list[Part], progress: Progress, cost: _Cost, name: str
    ) -> list[PartAnswer]:
        """The answers to parts, all asked at once."""
        try:
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(self._note(prompt, part, progress, cost, f"{name}{number}"))
                    for number, part in enumerate(parts)
                ]
        except BaseExceptionGroup as failed:  # the others were cancelled; an engine that is gone says most
            dead = [error for error in failed.exceptions if isinstance(error, EngineDeadError)]
            raise [*dead, *failed.exceptions][0] from failed
        return [task.result() for task in asked]

    async def _note(self, prompt: Prompt, part: Part, progress: Progress, cost: _Cost, name: str) -> PartAnswer:
        # A name of its own: seeds depend on it.
        asked = Prompt(f"{prompt.row_id}/{name}", part.token_ids, part.images, max_tokens=prompt.max_tokens)
        generation = await self._generate(asked, progress.watch, note=True)
        answer = self._parse(generation.completions[0])
        cost.prompt_tokens += len(part.token_ids)
        cost.cached_tokens += generation.cached_tokens
        cost.reasoning_tokens += answer.reasoning_tokens
        cost.answer_tokens += answer.answer_tokens
        return PartAnswer(part.first_page, part.last_page, answer.reasoning, answer.status, answer.answer)
