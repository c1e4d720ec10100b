"""What is asked of the engine depends on the row alone, and admission keeps order and bounds."""

import asyncio
import random
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
from magbatch.pipeline.repetition import RepetitionGuard
from magbatch.replica.admission import Admission
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


# Repetition.


def words(seed: int, count: int, vocabulary: int = 50) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(vocabulary) for _ in range(count)]


def feed(guard: RepetitionGuard, tokens: list[int], chunk: int = 64, sample: int = 0) -> int | None:
    """How many tokens the guard saw before it ended the sample; None where it never did."""
    for begin in range(0, len(tokens), chunk):
        if not guard(sample, tokens[begin : begin + chunk]):
            return begin + chunk
    return None


@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 100, 255, 256])
@pytest.mark.parametrize("chunk", [1, 64, 100])
def test_a_pattern_that_repeats_for_long_enough_ends_the_sample(length: int, chunk: int) -> None:
    thinking, pattern = words(1, 3000), words(2, length)
    ended = feed(RepetitionGuard(1024), thinking + pattern * 5000, chunk)
    assert ended is not None
    assert 3000 + 1024 - 10 <= ended <= 3000 + 1024 + chunk  # a few tokens before may happen to fit


@pytest.mark.parametrize(
    "tokens",
    [
        words(3, 50_000, vocabulary=2),
        words(4, 257) * 20,  # a pattern that does not fit four times into 1024 tokens
        (words(5, 300) + [7] * 1000) * 3,  # a thousand dots are not yet 1024
        [7] * 1023,
        [],
    ],
)
def test_text_that_only_resembles_itself_goes_on(tokens: list[int]) -> None:
    assert feed(RepetitionGuard(1024), tokens) is None


def test_each_sample_repeats_for_itself() -> None:
    guard = RepetitionGuard(256)
    assert all(guard(sample, [sample] * 200) for sample in range(4))
    assert not guard(2, [2] * 56)
    assert guard(3, [9] * 200)


def test_a_guard_without_a_bound_lets_everything_pass() -> None:
    assert feed(RepetitionGuard(None), [1] * 100_000) is None


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


# Admission.


class Door:
    """Rows that ask to be let in, and the order in which they were."""

    def __init__(self, rows: int, bytes_: int) -> None:
        self.admission = Admission(rows, bytes_)
        self.entered: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, size: int) -> None:
        async def enter() -> None:
            await self.admission.enter(size)
            self.entered.append(name)

        self.tasks[name] = asyncio.create_task(enter())
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def leave(self, size: int) -> None:
        self.admission.leave(size)
        await self.settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await self.settle()

    @property
    def state(self) -> tuple[int, int, int]:
        return self.admission.rows, self.admission.bytes, self.admission.waiting


def test_rows_enter_up_to_the_bound_of_rows_and_then_one_for_one() -> None:
    async def play() -> None:
        door = Door(2, 1000)
        for name in "abcd":
            await door.ask(name, 1)
        assert (door.entered, door.state) == (["a", "b"], (2, 2, 2))
        await door.leave(1)
        assert (door.entered, door.state) == (["a", "b", "c"], (2, 2, 1))
        await door.leave(1)
        await door.leave(1)
        await door.leave(1)
        assert (door.entered, door.state) == (["a", "b", "c", "d"], (0, 0, 0))

    asyncio.run(play())


def test_rows_enter_up_to_the_bound_of_bytes_in_the_order_in_which_they_ask() -> None:
    async def play() -> None:
        door = Door(10, 10)
        await door.ask("a", 6)
        await door.ask("b", 5)
        await door.ask("c", 1)  # fits beside a, but b was first
        assert door.entered == ["a"]
        await door.leave(6)
        assert (door.entered, door.state) == (["a", "b", "c"], (2, 6, 0))

    asyncio.run(play())


def test_a_row_above_every_bound_enters_alone() -> None:
    async def play() -> None:
        door = Door(10, 10)
        await door.ask("large", 11)
        await door.ask("small", 1)
        assert door.entered == ["large"]
        await door.leave(11)
        await door.ask("larger", 12)
        assert door.entered == ["large", "small"]
        await door.leave(1)
        assert door.entered == ["large", "small", "larger"]

    asyncio.run(play())


def test_a_row_that_gives_up_waiting_lets_those_behind_it_in() -> None:
    async def play() -> None:
        door = Door(10, 10)
        await door.ask("a", 6)
        await door.ask("b", 5)
        await door.ask("c", 1)
        await door.cancel("b")
        assert (door.entered, door.state) == (["a", "c"], (2, 7, 0))

    asyncio.run(play())


def test_a_row_that_is_let_in_and_gives_up_at_once_hands_its_place_on() -> None:
    async def play() -> None:
        door = Door(1, 10)
        for name in "abc":
            await door.ask(name, 1)
        door.admission.leave(1)  # lets b in ...
        door.tasks["b"].cancel()  # ... which never hears of it
        await door.settle()
        assert (door.entered, door.state) == (["a", "c"], (1, 1, 0))

    asyncio.run(play())


def test_a_row_that_gives_up_as_another_leaves_is_passed_over() -> None:
    async def play() -> None:
        door = Door(1, 10)
        for name in "abc":
            await door.ask(name, 1)
        door.tasks["b"].cancel()
        door.admission.leave(1)
        await door.settle()
        assert (door.entered, door.state) == (["a", "c"], (1, 1, 0))
        assert door.tasks["b"].cancelled()

    asyncio.run(play())


class Model:
    """What admission promises, said plainly: the longest possible beginning of the queue is inside."""

    def __init__(self, rows: int, bytes_: int) -> None:
        self.bounds = (rows, bytes_)
        self.waiting: dict[str, int] = {}
        self.inside: dict[str, int] = {}

    def let_in(self) -> None:
        while self.waiting:
            name, size = next(iter(self.waiting.items()))
            rows, bytes_ = len(self.inside) + 1, sum(self.inside.values()) + size
            if rows > 1 and (rows > self.bounds[0] or bytes_ > self.bounds[1]):
                return
            self.inside[name] = self.waiting.pop(name)

    @property
    def state(self) -> tuple[int, int, int]:
        return len(self.inside), sum(self.inside.values()), len(self.waiting)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_rows_do_the_bounds_and_the_order_hold_and_none_is_forgotten(seed: int) -> None:
    rng = random.Random(seed)
    bounds = rng.randrange(1, 6), rng.randrange(1, 40)

    async def play() -> None:
        door, model = Door(*bounds), Model(*bounds)
        left: set[str] = set()

        async def check() -> None:
            await door.settle()
            assert set(door.entered) - left == model.inside.keys()
            assert door.state == model.state
            assert model.state[0] == 1 or (model.state[0] <= bounds[0] and model.state[1] <= bounds[1])

        for number in range(300):
            on_their_way = [name for name, task in door.tasks.items() if not task.done()]
            inside = [name for name in model.inside if door.tasks[name].done()]
            move = rng.choice(["ask", "ask", "leave", "cancel"])
            if move == "ask":
                name, size = str(number), rng.randrange(1, 50)
                await door.ask(name, size)
                model.waiting[name] = size
            elif move == "leave" and inside:
                name = rng.choice(inside)
                left.add(name)
                door.admission.leave(model.inside.pop(name))
            elif move == "cancel" and on_their_way:
                name = rng.choice(on_their_way)
                door.tasks[name].cancel()
                model.waiting.pop(name, None)
                model.inside.pop(name, None)
            model.let_in()
            if rng.random() < 0.6:  # else the next move comes before anybody has noticed this one
                await check()
        await check()
        assert len(left) > 20
        while model.inside:
            name, size = model.inside.popitem()
            left.add(name)
            door.admission.leave(size)
            model.let_in()
            await check()
        assert door.state == (0, 0, 0)
        assert {name for name, task in door.tasks.items() if not task.cancelled()} == set(door.entered)

    asyncio.run(play())
