"""A row asked, parsed and checked: its prompt -> a finished row that is ready to be written.

A document that is read in page groups takes many requests: one about each group, then some that combine the answers.
Together they make a single row, which counts the tokens of all its requests.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from magbatch.answers import Checker
from magbatch.engines.base import Engine, RequestShape
from magbatch.errors import AnswerError, EngineDeadError, ErrorCode, RowError, Step
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.generate import Generate, ThinkingPlan
from magbatch.pipeline.meter import Meter
from magbatch.pipeline.parse import Parser
from magbatch.pipeline.prompt import Prompter
from magbatch.pipeline.request import OnNew
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
from magbatch.spec import JobSpec

T = TypeVar("T")
Pulse = Callable[[], AbstractContextManager[Callable[[], None]]]
"""Context of one request. It gives a callback, which is called whenever tokens of the request arrive."""


@dataclass(slots=True)
class Progress:
    """The step that a row has reached, and the tokens that it took so far.

    Attributes:
        pulse: Context that is entered for each request of the row.
        step: The step that the row has reached.
        meter: Counter of the row's tokens.
    """

    pulse: Pulse = lambda: nullcontext(lambda: None)
    step: Step = Step.GENERATE
    meter: Meter = field(default_factory=Meter)

    @contextmanager
    def watch(self, shape: RequestShape) -> Iterator[OnNew]:
        """Monitor one request of the row; see `RequestMonitor`."""
        count = self.meter.request(shape)
        with self.pulse() as beat:

            def observe(sample: int, new: Sequence[int]) -> None:
                beat()
                count(sample, new)

            yield observe

    def letter(self, row_id: str, code: ErrorCode, message: str, answer: str | None = None) -> DeadLetter:
        """The dead letter of the row, with the tokens that it took."""
        meter = self.meter
        return DeadLetter(
            row_id, self.step, code, message, answer,
            meter.prompt_tokens, meter.cached_tokens, meter.reasoning_tokens, meter.answer_tokens,
        )  # fmt: skip


@dataclass(slots=True)
class _Cost:
    """Tokens, seconds and answers of a row's page groups.

    Attributes:
        reasoning_tokens: Tokens of reasoning about page groups.
        answer_tokens: Tokens of answers about page groups.
        latency_s: Seconds from the row's first request to its last token.
        findings: Answers about the page groups of the document.
        truncated: Whether the end of an answer was left out when answers were combined.
    """

    reasoning_tokens: int = 0
    answer_tokens: int = 0
    latency_s: float = 0.0
    findings: list[PageGroupAnswer] = field(default_factory=list)
    truncated: bool = False


class RowAnswerer:
    """Answers rows.

    Args:
        generate: Step from prompt to tokens.
        parse: Step from tokens to reasoning and answer.
        check: Step from answer to the job's own columns.
        samples: Samples of each row.
        prompter: Builder of the prompts that combine answers about page groups.
    """

    def __init__(self, generate: Generate, parse: Parser, check: Checker, samples: int, prompter: Prompter) -> None:
        self._generate, self._parse, self._check, self._samples = generate, parse, check, samples
        self._prompter = prompter

    @classmethod
    def of(cls, spec: JobSpec, engine: Engine, tokenizer: Tokenizer, prompter: Prompter, max_model_len: int) -> Self:
        """The steps of a job from prompt to finished row.

        Args:
            spec: Spec of the job, for sampling, reasoning, answer and limits.
            engine: Engine that has started.
            tokenizer: Mistral's tokenizer of the model.
            prompter: Builder of the prompts that combine answers about page groups.
            max_model_len: Tokens that the engine can hold for one row, prompt included.

        Raises:
            ModelError: The model cannot reason in the way that the spec asks for.
        """
        limits, plan = spec.limits, ThinkingPlan.of(spec, tokenizer)
        generate = Generate(engine, spec.sampling, max_model_len, limits.repetition_tokens, plan)
        check = Checker(spec.answer, limits.answer_timeout_s)
        return cls(generate, Parser(tokenizer), check, spec.sampling.n, prompter)

    def progress(self, pulse: Pulse) -> Progress:
        """The progress of a row before its first request."""
        return Progress(pulse, meter=Meter(*self._parse.reasoning_marks))

    async def __call__(self, prompt: Prompt, progress: Progress) -> FinishedRow:
        """Answer all samples of a row.

        Args:
            prompt: Prompt of the row, with all its page groups.
            progress: Progress of the row, which is updated: it stays valid if the row fails.

        Raises:
            RowError: The row has no answer.
            EngineDeadError: The engine is gone.
        """
        cost = _Cost(findings=[PageGroupAnswer(group.first_page, group.last_page) for group in prompt.page_groups])
        asked, began = prompt, time.monotonic()
        if prompt.reads_page_groups:
            combined = await self._read_page_groups(prompt, progress, cost)
            if combined is None:
                return self._unanswered(prompt, cost, progress.meter)
            asked = combined
        progress.step = Step.GENERATE
        generation = await self._ask(asked, progress)
        progress.step = Step.PARSE
        answers = [self._parse(completion) for completion in generation.completions]
        progress.step = Step.CHECK
        answers = await _all_at_once(
            self._checked(asked, sample, completion, answer, progress)
            for sample, (completion, answer) in enumerate(zip(generation.completions, answers, strict=True))
        )
        cost.latency_s = time.monotonic() - began if prompt.reads_page_groups else generation.latency_s
        return self._finished(prompt, answers, cost, progress.meter)

    async def _ask(self, prompt: Prompt, progress: Progress, *, note: bool = False) -> Generation:
        """Generate for a prompt. Its tokens count even if the request fails."""
        progress.meter.prompt_tokens += len(prompt.token_ids)
        generation = await self._generate(prompt, progress.watch, note=note)
        progress.meter.cached_tokens += generation.cached_tokens
        return generation

    def _finished(self, prompt: Prompt, answers: list[Answer], cost: _Cost, meter: Meter) -> FinishedRow:
        vote = self._check.vote([answer.ballot for answer in answers])
        # Tokens about page groups belong to no sample. The first sample counts them, so that sums over a row are right.
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
        """The row of a document whose page groups all have no answer: there is nothing to combine."""
        truncated = Answer(None, ReasoningStatus.TRUNCATED, None, "length", 0, 0)
        return self._finished(prompt, [truncated] * self._samples, cost, meter)

    async def _checked(
        self, prompt: Prompt, sample: int, completion: Completion, answer: Answer, progress: Progress
    ) -> Answer:
        """Read an answer into the job's own columns; ask once more if it does not fit the schema."""
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
        tokens = answer.answer_tokens + second.answer_tokens  # both were generated and paid for
        return replace(second, values=reading.values, ballot=reading.ballot, answer_tokens=tokens)

    # Documents in page groups.

    async def _read_page_groups(self, prompt: Prompt, progress: Progress, cost: _Cost) -> Prompt | None:
        """Ask about all page groups and combine the answers, level by level.

        Returns:
            The prompt over all answers; None if no page group has an answer.
        """
        # These names seed the sampling: they stay as they are, so that a resumed row gets the same answers.
        findings = await self._notes(prompt, prompt.page_groups, progress, cost, "part")
        cost.findings = findings
        for level in range(len(findings)):  # each level has fewer findings than the level before
            if not any(finding.answer for finding in findings):
                return None
            progress.step = Step.PROMPT
            groups = self._prompter.combine(prompt, findings)
            cost.truncated |= any(group.truncated for group in groups)
            if len(groups) == 1:
                return replace(prompt, token_ids=groups[0].token_ids, images=groups[0].images)
            progress.step = Step.GENERATE
            findings = await self._notes(prompt, groups, progress, cost, f"level{level}")
        raise AssertionError("findings are combined into fewer, down to one")

    async def _notes(
        self, prompt: Prompt, groups: list[PageGroup], progress: Progress, cost: _Cost, name: str
    ) -> list[PageGroupAnswer]:
        """The answers about page groups, all asked at once."""
        return await _all_at_once(
            self._note(prompt, group, progress, cost, f"{name}{number}") for number, group in enumerate(groups)
        )

    async def _note(
        self, prompt: Prompt, group: PageGroup, progress: Progress, cost: _Cost, name: str
    ) -> PageGroupAnswer:
        """The answer about one page group; its name makes the seed differ from that of every other group."""
        asked = Prompt(f"{prompt.row_id}/{name}", group.token_ids, group.images, max_tokens=prompt.max_tokens)
        generation = await self._ask(asked, progress, note=True)
        answer = self._parse(generation.completions[0])
        cost.reasoning_tokens += answer.reasoning_tokens
        cost.answer_tokens += answer.answer_tokens
        return PageGroupAnswer(group.first_page, group.last_page, answer.reasoning, answer.status, answer.answer)


async def _all_at_once(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at once and return their results; if one fails, cancel the rest and raise its error."""
    first, *rest = work
    if not rest:
        return [await first]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in (first, *rest)]
    except BaseExceptionGroup as failed:  # the death of the engine explains the other errors
        dead = [error for error in failed.exceptions if isinstance(error, EngineDeadError)]
        raise [*dead, *failed.exceptions][0] from failed
    return [task.result() for task in tasks]
