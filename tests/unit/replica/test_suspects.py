"""Rows with strikes go with few of their like, and at last not at all."""

import asyncio

import pytest

from magbatch.errors import ErrorCode, Step
from magbatch.replica.suspects import SLOTS_PER_SUSPECT, STRIKES, Suspects


@pytest.mark.parametrize(("slots", "after_one"), [(256, 256 // SLOTS_PER_SUSPECT), (8, 1), (1, 1)])
def test_each_number_of_strikes_below_the_last_has_a_bound(slots: int, after_one: int) -> None:
    async def fill(bound: asyncio.Semaphore) -> int:
        rows = 0
        while not bound.locked():
            await bound.acquire()
            rows += 1
        return rows

    async def play() -> list[int]:
        suspects = Suspects(slots)
        return [await fill(suspects.bound(strikes)) for strikes in range(1, STRIKES)]

    assert asyncio.run(play()) == [after_one, *[1] * (STRIKES - 2)]


def test_a_row_with_all_strikes_is_a_dead_letter() -> None:
    suspects = Suspects(4)
    assert [suspects.letter("r", strikes) for strikes in range(STRIKES)] == [None] * STRIKES
    letter = suspects.letter("r", STRIKES)
    assert letter is not None
    assert (letter.row_id, letter.step, letter.code) == ("r", Step.GENERATE, ErrorCode.ENGINE_KILLER)
