"""Thinking and answer asked for apart: the budget is exact, every row answers, and only the answer is constrained."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from magbatch.engines import Engine, EngineConfig, start
from magbatch.engines.base import UNCONSTRAINED, OnTokens, RequestShape
from magbatch.errors import ErrorCode, ModelError, RowError
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.generate import Generate, ThinkingPlan
from magbatch.pipeline.parse import Parser
from magbatch.pipeline.prompt import Prompter
from magbatch.rows import Answer, Generation, Prompt, ReasoningStatus, RenderedRow, as_ids
from magbatch.spec import JobSpec, parse

SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
CONTEXT = 400
THINKING = 16  # tokens that the scripted engine thinks, where nobody stops it


class Watched:
    """An engine, and what it was asked."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.asked: list[tuple[Prompt, int, int | None, RequestShape]] = []

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        self.asked.append((prompt, max_tokens, seed, form))
        return await self.engine.generate(prompt, max_tokens=max_tokens, seed=seed, on_tokens=on_tokens, form=form)

    def shutdown(self) -> None:
        self.engine.shutdown()


class Asking:
    """A job that asks one row.

    Args:
        checkpoint: The tiny model's.
        tokenizer: Tokenizer of the engine.
        engine: Arguments of the scripted engine.
        sections: Sections of the spec.
    """

    def __init__(self, checkpoint: Path, tokenizer: Tokenizer, engine: dict[str, Any], **sections: Any) -> None:
        self.tokenizer = tokenizer
        text = {
            "name": "t", "model": {"source": "builtin:tiny", "engine": "fake"}, "output": {"path": "/o"},
            "input": {"path": "/in", "columns": {"prompt": "q"}}, "sampling": {"max_tokens": 100, "seed": 3},
        }  # fmt: skip
        self.spec: JobSpec = parse(yaml.safe_dump(text | sections))
        arguments = {"max_model_len": CONTEXT, "max_num_seqs": 4, "tokens": THINKING} | engine
        config = EngineConfig(checkpoint, arguments, self.spec.sampling, 0)
        self.engine = Watched(start("fake", config, tokenizer))
        plan = ThinkingPlan.of(self.spec, tokenizer)
        self.generate = Generate(self.engine, self.spec.sampling, CONTEXT, None, plan)
        prompter = Prompter(self.spec, checkpoint, tokenizer, CONTEXT)
        self.prompt = prompter(RenderedRow("row", [{"role": "user", "content": [{"text": "What is 4711?"}]}]))

    def answers(self) -> list[Answer]:
        generation = asyncio.run(self.generate(self.prompt))
        return [Parser(self.tokenizer)(completion) for completion in generation.completions]

    def texts(self) -> list[str]:
        """Text that each request's prompt has after the row's own prompt."""
        begin = len(self.prompt.token_ids)
        return [self.tokenizer.show(prompt.token_ids[begin:]) for prompt, *_ in self.engine.asked]


@pytest.fixture
def asking(checkpoint: Path, tokenizer: Tokenizer) -> Any:
    def begin(engine: dict[str, Any] | None = None, **sections: Any) -> Asking:
        return Asking(checkpoint, tokenizer, engine or {}, **sections)

    return begin


def test_a_job_without_wishes_asks_once(asking: Any) -> None:
    job = asking()
    (answer,) = job.answers()
    assert answer.status is ReasoningStatus.COMPLETE
    ((_, most, _, form),) = job.engine.asked
    assert (most, form) == (100, UNCONSTRAINED)


@pytest.mark.parametrize("budget", [1, 7, THINKING - 1])
def test_thinking_is_cut_at_its_budget_and_the_row_answers(asking: Any, budget: int) -> None:
    job = asking(reasoning={"budget_tokens": budget})
    (answer,) = job.answers()
    assert (answer.status, answer.reasoning_tokens) == (ReasoningStatus.BUDGET, budget)
    assert "4711" in (answer.answer or "")
    assert answer.finish_reason == "stop"
    first, second = job.engine.asked
    assert (first[1], first[3]) == (budget, RequestShape(stop=job.tokenizer.think_close))
    assert second[1] == 100 - budget
    assert second[3] == RequestShape(samples=1, banned_token=job.tokenizer.think_open), "it may think no more"
    assert job.texts()[0] == "[THINK]"
    assert job.texts()[1].startswith("[THINK]")
    assert job.texts()[1].endswith("[/THINK]")


def test_thinking_that_ends_by_itself_is_complete(asking: Any) -> None:
    (answer,) = asking(reasoning={"budget_tokens": THINKING + 1}).answers()
    # The closing token is its own.
    assert (answer.status, answer.reasoning_tokens) == (ReasoningStatus.COMPLETE, THINKING + 1)
    assert answer.answer


@pytest.mark.parametrize("do", ["never_close", "answer"])
def test_every_row_answers_however_long_it_would_think(asking: Any, do: str) -> None:
    script = [{"contains": "4711", "do": do, "tokens": 10_000}]
    (answer,) = asking({"script": script}, reasoning={"budget_tokens": 50}).answers()
    assert (answer.status, answer.reasoning_tokens) == (ReasoningStatus.BUDGET, 50)
    assert answer.answer


def test_a_budget_leaves_room_for_the_answer_in_a_short_context(asking: Any) -> None:
    script = [{"contains": "4711", "tokens": 10_000}]
    sections = {"reasoning": {"budget_tokens": 5000}, "sampling": {"max_tokens": 6000}}
    job = asking({"script": script}, **sections)
    (answer,) = job.answers()
    assert (answer.status, bool(answer.answer)) == (ReasoningStatus.BUDGET, True)
    assert all(len(prompt.token_ids) + most <= CONTEXT for prompt, most, _, _ in job.engine.asked)


def test_only_the_answer_is_constrained(asking: Any) -> None:
    job = asking({"script": [{"contains": "4711", "answer": '{"x": 4711}'}]}, answer={"schema": SCHEMA})
    (answer,) = job.answers()
    assert (answer.status, answer.answer) == (ReasoningStatus.COMPLETE, '{"x": 4711}')
    assert answer.reasoning_tokens == THINKING + 1
    assert [form for *_, form in job.engine.asked] == [
        RequestShape(stop=job.tokenizer.think_close),
        RequestShape(samples=1, schema=SCHEMA),
    ]


def test_thinking_that_runs_out_of_tokens_has_no_answer(asking: Any) -> None:
    """Without a budget nobody asked to close it: it is never shown as if it had come to an end."""
    script = [{"contains": "4711", "tokens": 10_000}]
    job = asking({"script": script}, answer={"schema": SCHEMA})
    (answer,) = job.answers()
    assert (answer.status, answer.answer) == (ReasoningStatus.TRUNCATED, None)
    assert answer.reasoning_tokens == 99
    assert len(job.engine.asked) == 1


def test_each_sample_thinks_and_answers_for_itself(asking: Any) -> None:
    job = asking(reasoning={"budget_tokens": 7}, sampling={"max_tokens": 100, "seed": 3, "n": 3})
    answers = job.answers()
    assert [(answer.status, answer.reasoning_tokens) for answer in answers] == [(ReasoningStatus.BUDGET, 7)] * 3
    thoughts, *rest = job.engine.asked
    assert thoughts[3].samples is None
    assert [form.samples for *_, form in rest] == [1, 1, 1]
    seeds = [seed for _, _, seed, _ in job.engine.asked]
    assert len(set(seeds)) == 4
    again = asking(reasoning={"budget_tokens": 7}, sampling={"max_tokens": 100, "seed": 3, "n": 3})
    again.answers()
    assert [seed for _, _, seed, _ in again.engine.asked] == seeds


def test_no_thinking_is_an_empty_thought_in_the_prompt(asking: Any) -> None:
    job = asking(reasoning={"effort": "none"})
    (answer,) = job.answers()
    assert (answer.status, answer.reasoning, answer.reasoning_tokens) == (ReasoningStatus.ABSENT, None, 0)
    assert "4711" in (answer.answer or "")
    assert job.texts() == ["[THINK][/THINK]"]


def test_an_effort_is_refused_by_a_tokenizer_that_knows_none(asking: Any) -> None:
    with pytest.raises(ModelError, match=r"reasoning.effort: high, but this model's tokenizer \(v13\)"):
        asking(reasoning={"effort": "high"})


def test_a_second_answer_follows_the_same_thinking_and_the_objection(asking: Any) -> None:
    script = [{"contains": "4711", "answer": ["seven", '{"x": 7}']}]
    job = asking({"script": script}, answer={"schema": SCHEMA})
    generation = asyncio.run(job.generate(job.prompt))
    (completion,) = generation.completions
    second = asyncio.run(job.generate.retry_answer(job.prompt, 0, completion, "not JSON"))
    parser = Parser(job.tokenizer)
    assert parser(second).answer == '{"x": 7}'
    assert parser(second).reasoning == parser(completion).reasoning
    asked = job.texts()[-1]
    assert asked.startswith(job.texts()[1] + "seven</s>[INST]")
    assert asked.endswith("That answer is not valid: not JSON. Give the whole answer again.[/INST]")
    assert job.engine.asked[-1][3] == RequestShape(samples=1, schema=SCHEMA)


def test_the_second_answer_of_each_sample_has_a_seed_of_its_own(asking: Any) -> None:
    script = [{"contains": "4711", "answer": ["seven", '{"x": 7}']}]
    job = asking({"script": script}, answer={"schema": SCHEMA}, sampling={"max_tokens": 100, "seed": 3, "n": 2})
    generation = asyncio.run(job.generate(job.prompt))
    for sample, completion in enumerate(generation.completions):
        asyncio.run(job.generate.retry_answer(job.prompt, sample, completion, "not JSON"))
    seeds = [seed for _, _, seed, _ in job.engine.asked]
    assert len(set(seeds)) == len(seeds)


def test_a_second_answer_without_thinking_follows_the_closed_thought_too(asking: Any) -> None:
    script = [{"contains": "4711", "answer": ["seven", '{"x": 7}']}]
    job = asking({"script": script}, answer={"schema": SCHEMA}, reasoning={"effort": "none"})
    generation = asyncio.run(job.generate(job.prompt))
    (completion,) = generation.completions
    second = asyncio.run(job.generate.retry_answer(job.prompt, 0, completion, "not JSON"))
    assert Parser(job.tokenizer)(second).answer == '{"x": 7}'
    assert job.texts()[1].startswith("[THINK][/THINK]seven</s>[INST]")


def test_the_engine_is_not_told_of_formats_that_its_grammar_does_not_know(asking: Any) -> None:
    def schema(**iri: str) -> dict[str, Any]:
        items = {"anyOf": [{"type": "string", **iri}, {"type": "null"}]}
        kept = {"format": {"type": "string", "format": "date"}}  # a property of that name, and a format that it knows
        return {"type": "object", "properties": {"x": {"type": "array", "items": items}, **kept}}

    job = asking(answer={"schema": schema(format="iri")})
    job.answers()
    assert job.engine.asked[-1][3].schema == schema()


def test_a_prompt_that_fills_the_context_is_too_long(asking: Any) -> None:
    job = asking(reasoning={"budget_tokens": 7})
    job.prompt.token_ids = as_ids([100] * (CONTEXT - 2))
    with pytest.raises(RowError) as caught:
        job.answers()
    assert caught.value.code is ErrorCode.PROMPT_TOO_LONG
