"""A row is asked, parsed and checked; what it cost is known even if it fails."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from magbatch.answers import Checker
from magbatch.engines import EngineConfig, start
from magbatch.errors import ErrorCode, RowError, Step
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.answer import Progress, RowAnswerer
from magbatch.pipeline.generate import Generate, ThinkingPlan
from magbatch.pipeline.parse import Parser
from magbatch.pipeline.prompt import Prompter
from magbatch.rows import FinishedRow, Page, Prompt, ReasoningStatus, RenderedRow
from magbatch.spec import JobSpec

CONTEXT = 900
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


class Asking:
    """A job that answers single rows with the scripted engine."""

    def __init__(self, spec: JobSpec, checkpoint: Path, tokenizer: Tokenizer, engine: dict[str, Any]) -> None:
        config = EngineConfig(
            checkpoint, {"max_model_len": CONTEXT, "max_num_seqs": 4, "tokens": 8} | engine, spec.sampling, 0
        )
        generate = Generate(
            start("fake", config, tokenizer), spec.sampling, CONTEXT, None, ThinkingPlan.of(spec, tokenizer)
        )
        self.prompter = Prompter(spec, checkpoint, tokenizer, CONTEXT)
        check = Checker(spec.answer, spec.limits.answer_timeout_s)
        self.answerer = RowAnswerer(generate, Parser(tokenizer), check, spec.sampling.n, self.prompter)
        self.pulses = 0

    @contextmanager
    def pulse(self) -> Iterator[Callable[[], None]]:
        def beat() -> None:
            self.pulses += 1

        yield beat

    def progress(self) -> Progress:
        return self.answerer.progress(self.pulse)

    def answer(self, prompt: Prompt, progress: Progress) -> FinishedRow:
        return asyncio.run(self.answerer(prompt, progress))


@pytest.fixture
def asking(make_spec: Callable[..., JobSpec], checkpoint: Path, tokenizer: Tokenizer) -> Callable[..., Asking]:
    def begin(engine: dict[str, Any] | None = None, **sections: Any) -> Asking:
        spec = make_spec(**{"prompt": {"system": "none"}, "sampling": {"max_tokens": 100, "seed": 3}} | sections)
        return Asking(spec, checkpoint, tokenizer, engine or {})

    return begin


def question(pages: int = 0) -> RenderedRow:
    shown = [Page(number, f"page {number} " * 40) for number in range(1, pages + 1)]
    return RenderedRow("row", [{"role": "user", "content": [{"text": "What?"}]}], [], shown, pages)


def test_a_row_has_an_answer_for_each_sample_and_its_tokens(asking: Callable[..., Asking]) -> None:
    job = asking(sampling={"max_tokens": 100, "seed": 3, "n": 2})
    prompt, progress = job.prompter(question()), job.progress()
    row = job.answer(prompt, progress)
    assert [answer.status for answer in row.answers] == [ReasoningStatus.COMPLETE] * 2
    assert all(answer.reasoning and answer.answer for answer in row.answers)
    assert row.prompt_tokens == len(prompt.token_ids)
    assert sum(answer.reasoning_tokens for answer in row.answers) == progress.meter.reasoning_tokens
    assert sum(answer.answer_tokens for answer in row.answers) == progress.meter.answer_tokens
    assert (progress.step, job.pulses > 0) == (Step.CHECK, True)


def test_page_groups_are_asked_and_their_answers_combined_into_one_row(asking: Callable[..., Asking]) -> None:
    job = asking(
        input={"path": "/in", "columns": {"document": "d"}, "document": {"overflow": "map_reduce", "mode": "text"}},
        prompt={"system": "none", "template": "What?"},
        limits={"max_prompt_tokens": 400},
    )
    prompt, progress = job.prompter(question(pages=6)), job.progress()
    groups = prompt.page_groups
    assert len(groups) > 1
    row = job.answer(prompt, progress)
    spans = [(group.first_page, group.last_page) for group in groups]
    assert [(found.first_page, found.last_page) for found in row.page_group_answers] == spans
    assert all(found.answer and found.reasoning for found in row.page_group_answers)
    (answer,) = row.answers
    assert answer.answer
    assert row.prompt_tokens > sum(len(group.token_ids) for group in groups)
    assert (answer.reasoning_tokens, answer.answer_tokens) == (
        progress.meter.reasoning_tokens,
        progress.meter.answer_tokens,
    )


def test_a_second_answer_that_does_not_fit_either_is_refused_with_what_both_took(asking: Callable[..., Asking]) -> None:
    job = asking(
        {"script": [{"contains": "What", "answer": "no number"}]},
        answer={"schema": SCHEMA},
        reasoning={"budget_tokens": 4},
    )
    progress = job.progress()
    with pytest.raises(RowError) as caught:
        job.answer(job.prompter(question()), progress)
    assert caught.value.code == ErrorCode.ANSWER_INVALID
    assert caught.value.answer == "no number"
    letter = progress.letter("row", caught.value.code, caught.value.message, caught.value.answer)
    assert (letter.step, letter.answer) == (Step.CHECK, "no number")
    assert (letter.prompt_tokens, letter.reasoning_tokens) == (progress.meter.prompt_tokens, 4)
    assert letter.answer_tokens == progress.meter.answer_tokens > 0
