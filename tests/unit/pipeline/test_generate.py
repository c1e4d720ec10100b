"""Requests depend on the row alone, and failed requests are retried or become the row's error."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from magbatch.engines import EngineConfig, start
from magbatch.engines.base import UNCONSTRAINED, OnTokens, RequestShape
from magbatch.errors import EngineDeadError, ErrorCode, RequestFailedError, RequestRejectedError, RowError
from magbatch.model.tokenizer import Tokenizer
from magbatch.pipeline.generate import Generate, row_seed
from magbatch.rows import Completion, Generation, Prompt, as_ids
from magbatch.spec import SamplingSpec

# Seeds.


def test_a_rows_seed_depends_on_the_jobs_seed_and_the_row_alone() -> None:
    assert row_seed(7, "abc-000000001") == row_seed(7, "abc-000000001")
    assert row_seed(7, "abc-000000001") != row_seed(8, "abc-000000001")
    assert row_seed(7, "abc-000000001") != row_seed(7, "abc-000000002")
    assert row_seed(1, "1/a") != row_seed(11, "/a")
    assert row_seed(None, "abc-000000001") is None


def test_a_rows_seed_is_the_same_in_every_release() -> None:
    """A job that was begun by an older magbatch goes on with the same answers."""
    assert row_seed(0, "0123456789ab-000000000") == 618073507332424788
    assert row_seed(20261101, "0123456789ab-000000042") == 6726959881925976760


def test_seeds_are_distinct_and_fit_into_63_bits() -> None:
    seeds = [row_seed(3, f"key-{number:09d}") for number in range(20_000)]
    assert len(set(seeds)) == len(seeds)
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)
    assert max(seed or 0 for seed in seeds) > 2**62  # all bits are used


# One row.


class Listening:
    """An engine that keeps what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self._error = error

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        self.asked.append({"row_id": prompt.row_id, "max_tokens": max_tokens, "seed": seed})
        if self._error is not None:
            raise self._error
        return Generation([Completion([1], "stop")], 0, 0.0)

    def shutdown(self) -> None:
        return


def prompt(tokens: int, row_id: str = "row") -> Prompt:
    return Prompt(row_id, as_ids([100] * tokens))


def ask(engine: Any, sampling: SamplingSpec, context: int, *prompts: Prompt) -> list[Generation]:
    generate = Generate(engine, sampling, context)

    async def all_of_them() -> list[Generation]:
        return [await generate(item) for item in prompts]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("tokens", "context", "wanted", "given"),
    [(10, 1000, 50, 50), (10, 60, 50, 50), (10, 59, 50, 49), (59, 60, 50, 1), (10, 131_072, 131_072, 131_062)],
)
def test_an_answer_gets_what_the_context_leaves(tokens: int, context: int, wanted: int, given: int) -> None:
    engine = Listening()
    ask(engine, SamplingSpec(max_tokens=wanted), context, prompt(tokens))
    assert engine.asked[0]["max_tokens"] == given


def test_each_row_is_asked_with_its_seed() -> None:
    engine = Listening()
    ask(engine, SamplingSpec(seed=5), 100, prompt(1, "a"), prompt(1, "b"))
    assert [asked["seed"] for asked in engine.asked] == [row_seed(5, "a"), row_seed(5, "b")]
    free = Listening()
    ask(free, SamplingSpec(), 100, prompt(1))
    assert free.asked[0]["seed"] is None


def test_what_the_engine_generates_is_handed_on(checkpoint: Path, tokenizer: Tokenizer) -> None:
    sampling = SamplingSpec(n=3, max_tokens=5)
    config = EngineConfig(checkpoint, {"max_model_len": 100, "max_num_seqs": 2}, sampling, 0)
    (generation,) = ask(start("fake", config, tokenizer), sampling, 100, prompt(10))
    assert [len(completion.token_ids) for completion in generation.completions] == [5, 5, 5]


def test_a_rejected_row_is_that_rows_error() -> None:
    with pytest.raises(RowError) as caught:
        ask(Listening(RequestRejectedError("not\n this one")), SamplingSpec(), 100, prompt(1))
    assert (caught.value.code, caught.value.message) == (ErrorCode.ENGINE_REJECTED, "not this one")


class Failing(Listening):
    """An engine that says something, and ends its first requests with errors of its own after that."""

    def __init__(self, failures: int, said: list[int], then: Exception | None = None) -> None:
        super().__init__()
        self._failures, self._said, self._then = failures, said, then

    async def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int,
        seed: int | None,
        on_tokens: OnTokens | None = None,
        form: RequestShape = UNCONSTRAINED,
    ) -> Generation:
        await super().generate(prompt, max_tokens=max_tokens, seed=seed)
        assert on_tokens is not None
        goes_on = on_tokens(0, self._said)
        if len(self.asked) <= self._failures:
            raise RequestFailedError("it went wrong")
        if self._then is not None:
            raise self._then
        return Generation([Completion(self._said, "stop" if goes_on else "repetition")], 0, 0.0)


def test_what_the_engine_gives_up_is_asked_again_from_the_start() -> None:
    engine = Failing(2, said=[7] * 50)
    generate = Generate(engine, SamplingSpec(seed=5), 1000, repetition_tokens=100)
    pulses: list[int] = []  # of each request

    @contextmanager
    def watch(form: RequestShape) -> Iterator[Callable[[int, Sequence[int]], None]]:
        pulses.append(0)

        def observe(sample: int, new: Sequence[int]) -> None:
            pulses[-1] += len(new)

        yield observe

    generation = asyncio.run(generate(prompt(1), watch))
    assert generation.completions == [Completion([7] * 50, "stop")], "the tries before it count as no repetition"
    assert engine.asked == [engine.asked[0]] * 3
    assert pulses == [50, 50, 50], "each is a request of its own, which may wait for a slot"


def test_a_try_after_another_may_be_refused_or_meet_a_dead_engine() -> None:
    for error in (RequestRejectedError("too long"), EngineDeadError("gone")):
        engine = Failing(1, said=[7], then=error)
        with pytest.raises(EngineDeadError if isinstance(error, EngineDeadError) else RowError, match=str(error)):
            ask(engine, SamplingSpec(), 100, prompt(1))
        assert len(engine.asked) == 2


def test_what_the_engine_gives_up_time_and_again_is_that_rows_error() -> None:
    engine = Failing(3, said=[])
    with pytest.raises(RowError) as caught:
        ask(engine, SamplingSpec(), 100, prompt(1))
    assert (caught.value.code, caught.value.message) == (
        ErrorCode.ENGINE_REJECTED,
        "the engine failed the request 3 times: it went wrong",
    )
    assert len(engine.asked) == 3


def test_a_dead_engine_is_no_rows_error() -> None:
    with pytest.raises(EngineDeadError):
        ask(Listening(EngineDeadError("gone")), SamplingSpec(), 100, prompt(1))


def test_a_sample_that_repeats_itself_ends_as_repetition(checkpoint: Path, tokenizer: Tokenizer) -> None:
    """The scripted engine's thinking repeats the prompt's end."""
    sampling = SamplingSpec(max_tokens=4000)
    config = EngineConfig(checkpoint, {"max_model_len": 9000, "max_num_seqs": 2, "tokens": 3000}, sampling, 0)
    engine = start("fake", config, tokenizer)
    generate = Generate(engine, sampling, 9000, repetition_tokens=512)
    (completion,) = asyncio.run(generate(prompt(10))).completions
    assert completion.finish_reason == "repetition"
    assert 512 <= len(completion.token_ids) <= 512 + 128
    (whole,) = asyncio.run(Generate(engine, sampling, 9000)(prompt(10))).completions
    assert (whole.finish_reason, len(whole.token_ids)) == ("stop", 3012)
