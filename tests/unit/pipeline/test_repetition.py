"""Samples that only repeat themselves are noticed; other text is not."""

import random

import pytest

from magbatch.pipeline.repetition import RepetitionGuard


def words(seed: int, count: int, vocabulary: int = 50) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(vocabulary) for _ in range(count)]


def feed(guard: RepetitionGuard, tokens: list[int], chunk: int = 64, sample: int = 0) -> int | None:
    """Number of tokens before the guard ended the sample; None if it did not."""
    for begin in range(0, len(tokens), chunk):
        if not guard(sample, tokens[begin : begin + chunk]):
            return begin + chunk
    return None


@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 100, 255, 256])
@pytest.mark.parametrize("chunk", [1, 64, 100])
def test_a_pattern_that_repeats_for_long_enough_ends_the_sample(length: int, chunk: int) -> None:
    thinking, pattern = words(1, 300), words(2, length)
    ended = feed(RepetitionGuard(1024), thinking + pattern * (2000 // length + 1), chunk)
    assert ended is not None
    assert 300 + 1024 - 10 <= ended <= 300 + 1024 + chunk  # a few tokens before may happen to fit


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
