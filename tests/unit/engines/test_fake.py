"""The scripted engine answers with real tokens, does what its script says, and keeps the engine's contract."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from magbatch.engines import Engine, EngineConfig, engine_args, start
from magbatch.errors import EngineDeadError, EngineStartError, RequestRejectedError
from magbatch.model.facts import facts
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.parse import Parser
from magbatch.pipeline.prompt import Prompter
from magbatch.rows import Generation, Prompt, ReasoningStatus, RenderedRow, as_ids
from magbatch.spec import SamplingSpec, parse


@pytest.fixture
def engine(checkpoint: Path, tokenizer: Tokenizer) -> Callable[..., Engine]:
    """Start the fake with these arguments."""

    def begin(n: int = 1, **args: Any) -> Engine:
        arguments = {"max_model_len": 8192, "max_num_seqs": 4} | args
        return start("fake", EngineConfig(checkpoint, arguments, SamplingSpec(n=n), 0), tokenizer)

    return begin


@pytest.fixture
def ask(checkpoint: Path, tokenizer: Tokenizer) -> Callable[[str], Prompt]:
    """The prompt of a row that asks this."""
    text = {"name": "t", "model": {"source": "builtin:tiny"}, "input": {"path": "/in", "columns": {"prompt": "q"}}}
    prompter = Prompter(parse(yaml.safe_dump(text | {"output": {"path": "/o"}})), checkpoint, tokenizer, 8192)
    return lambda question: prompter(RenderedRow("row", [{"role": "user", "content": [{"text": question}]}]))


Begin = Callable[..., Engine]
Ask = Callable[[str], Prompt]


def run(engine: Engine, *prompts: Prompt, max_tokens: int = 1000) -> list[Generation | BaseException]:
    async def together() -> list[Generation | BaseException]:
        requests = (engine.generate(prompt, max_tokens=max_tokens, seed=None) for prompt in prompts)
        return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(together())


def one(engine: Engine, prompt: Prompt, max_tokens: int = 1000) -> Generation:
    (generation,) = run(engine, prompt, max_tokens=max_tokens)
    assert isinstance(generation, Generation), generation
    return generation


def test_an_answer_tells_which_row_it_belongs_to(engine: Begin, ask: Ask, tokenizer: Tokenizer) -> None:
    (completion,) = one(engine(), ask("What is row 4711?")).completions
    answer = Parser(tokenizer)(completion)
    assert answer.status is ReasoningStatus.COMPLETE
    assert answer.finish_reason == "stop"
    assert "row 4711?" in (answer.answer or "")
    assert answer.reasoning_tokens == 16 + 2


def test_the_same_prompt_gets_the_same_answer(engine: Begin, ask: Ask) -> None:
    running = engine()
    first, second = (one(running, ask("What?")).completions for _ in range(2))
    assert first == second


def test_there_are_as_many_samples_as_asked_for(engine: Begin, ask: Ask) -> None:
    assert len(one(engine(n=3), ask("What?")).completions) == 3


@pytest.mark.parametrize("tokens", [1, 3, 500])
def test_thinking_is_as_long_as_told(engine: Begin, ask: Ask, tokenizer: Tokenizer, tokens: int) -> None:
    (completion,) = one(engine(tokens=tokens), ask("What?")).completions
    assert Parser(tokenizer)(completion).reasoning_tokens == tokens + 2
    script = [{"contains": "Wh", "tokens": tokens}]
    (scripted,) = one(engine(script=script), ask("What?")).completions
    assert scripted == completion


def test_an_answer_ends_at_its_tokens(engine: Begin, ask: Ask, tokenizer: Tokenizer) -> None:
    whole = one(engine(), ask("What?")).completions[0]
    length = len(whole.token_ids)
    cut = one(engine(), ask("What?"), max_tokens=length - 1).completions[0]
    assert (cut.token_ids, cut.finish_reason) == (whole.token_ids[:-1], "length")
    assert one(engine(), ask("What?"), max_tokens=length).completions[0] == whole
    inside = one(engine(tokens=100), ask("What?"), max_tokens=50).completions[0]
    assert Parser(tokenizer)(inside).status is ReasoningStatus.TRUNCATED


def test_the_first_rule_that_fits_decides(engine: Begin, ask: Ask, tokenizer: Tokenizer) -> None:
    running = engine(
        script=[
            {"contains": "NO", "do": "no_think"},
            {"contains": "OPEN", "do": "never_close"},
            {"contains": "BAD", "do": "reject"},
            {"contains": "BAD NO", "do": "die"},
        ]
    )
    prompts = [ask(text) for text in ("fine", "NO thinking", "OPEN end", "BAD", "BAD NO")]
    fine, absent, truncated, rejected, first = run(running, *prompts)
    status = []
    for generation in (fine, absent, truncated, first):
        assert isinstance(generation, Generation)
        status.append(str(Parser(tokenizer)(generation.completions[0]).status))
    assert status == ["complete", "absent", "truncated", "absent"]
    assert isinstance(rejected, RequestRejectedError)


def test_a_dead_engine_takes_its_rows_along_and_answers_no_more(engine: Begin, ask: Ask) -> None:
    running = engine(token_s=0.001, script=[{"contains": "POISON", "do": "die"}])
    outcomes = run(running, ask("in flight"), ask("POISON"), ask("later"))
    assert [type(outcome) for outcome in outcomes] == [EngineDeadError] * 3
    assert [type(outcome) for outcome in run(running, ask("afterwards"))] == [EngineDeadError]


def test_an_engine_that_was_shut_down_answers_no_more(engine: Begin, ask: Ask) -> None:
    running = engine()
    running.shutdown()
    assert [type(outcome) for outcome in run(running, ask("x"))] == [EngineDeadError]


def test_no_more_rows_run_at_once_than_it_has_slots(engine: Begin, ask: Ask) -> None:
    """A row that kills an engine with one slot gets in only after the row before it is answered."""
    script = [{"contains": "POISON", "do": "die"}]
    first, second = run(engine(max_num_seqs=1, token_s=0.0005, script=script), ask("one"), ask("POISON"))
    assert isinstance(first, Generation)
    assert isinstance(second, EngineDeadError)


def test_a_cancelled_row_frees_its_slot(engine: Begin, ask: Ask) -> None:
    async def play() -> Generation:
        running = engine(max_num_seqs=1, token_s=3600)
        stuck = asyncio.create_task(running.generate(ask("one"), max_tokens=10, seed=None))
        await asyncio.sleep(0)
        stuck.cancel()
        return await running.generate(Prompt("empty", as_ids()), max_tokens=0, seed=None)

    assert asyncio.run(asyncio.wait_for(play(), 30)).completions[0].token_ids == []


def test_the_journal_has_a_line_for_each_request(engine: Begin, ask: Ask, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    script = [{"contains": "BAD", "do": "reject"}]
    run(engine(journal=str(journal), script=script), ask("one"), ask("BAD"))
    run(engine(journal=str(journal)), ask("one"))
    assert [line.split()[0] for line in journal.read_text().splitlines()] == ["row"] * 3


def test_what_is_scripted_for_the_start_happens(engine: Begin) -> None:
    with pytest.raises(EngineStartError, match=r"^CUDA out of luck$"):
        engine(start_error="CUDA out of luck")


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokenz": 1},
        {"tokens": 0},
        {"token_s": -1},
        {"script": [{"do": "die"}]},
        {"script": [{"contains": "a", "do": "x"}]},
    ],
)
def test_wrong_arguments_stop_the_start(engine: Begin, wrong: dict[str, Any]) -> None:
    with pytest.raises(EngineStartError, match="fake engine: "):
        engine(**wrong)


def test_the_resolved_arguments_of_a_job_start_it(checkpoint: Path, tokenizer: Tokenizer) -> None:
    text = {"name": "t", "model": {"source": "builtin:tiny", "engine": "fake", "engine_args": {"tokens": 2}}}
    text |= {"input": {"path": "/in", "columns": {"prompt": "q"}}, "output": {"path": "/o"}}
    spec = parse(yaml.safe_dump(text))
    args = engine_args(spec, facts(checkpoint)).to_dict()
    start("fake", EngineConfig(checkpoint, args, spec.sampling, 0), tokenizer).shutdown()
