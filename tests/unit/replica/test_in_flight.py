"""Only a row that has asked the engine for something can hang with it, or end it."""

import asyncio

import pytest
from support.small_job import SmallJob, until

from magbatch.errors import EngineDeadError
from magbatch.replica.timing import TICK_S

SLOW_TO_CHECK = "x" * 40


@pytest.fixture
def slow(job: SmallJob) -> SmallJob:
    """Checking the answers of a0 and a1 takes much longer than the engine may give nothing."""
    job.ask(6)
    job.set("input", shard_rows=6)
    job.set("answer", extract=r"(?P<answer>(x+x+)+y|7)")
    job.set("limits", answer_timeout_s=3.0, row_timeout_s=1.0)
    job.engine["script"] = [
        {"contains": "a0?", "answer": SLOW_TO_CHECK},
        {"contains": "a1?", "answer": SLOW_TO_CHECK},
        {"contains": "What", "answer": "The answer: 7."},
    ]
    job.begin()
    return job


def test_an_engine_does_not_hang_while_answers_are_checked(slow: SmallJob) -> None:
    slow.answer()
    assert (slow.deaths, slow.board.struck, slow.board.gone) == (0, [], [])
    letters = {row["id"]: (row["step"], row["error_code"]) for row in slow.records("errors")}
    assert letters == dict.fromkeys(("a0", "a1"), ("check", "answer_invalid"))
    assert {row["id"]: row["extracted"] for row in slow.records()} == {f"a{row}": "7" for row in range(2, 6)}
    assert set(slow.asked().values()) == {1}


def test_a_request_after_a_long_check_has_its_time(slow: SmallJob) -> None:
    """Two rows are let in at once: the third begins when the engine has had nothing to do for long."""
    slow.engine["max_num_seqs"] = 1
    third = slow.row_ids()[2]

    async def work() -> None:
        engine = slow.start_engine(hold=[third])
        shard = asyncio.create_task(slow.run_shard(slow.replica(engine)))
        await until(lambda: third in engine.inside, "the third row in the engine")
        await asyncio.sleep(2 * TICK_S)  # a look at the engine, or two
        engine.release()
        assert await shard == 0

    asyncio.run(work())
    assert (slow.deaths, slow.board.struck) == (0, [])
    assert len(slow.done()) == 4


def test_an_engine_that_dies_accuses_no_row_whose_answer_is_checked(slow: SmallJob) -> None:
    slow.set("limits", answer_timeout_s=6.0, row_timeout_s=None)
    slow.engine["script"] = [{"contains": "a2?", "do": "die"}, *slow.engine["script"]]
    ids = slow.row_ids()

    async def work() -> None:
        engine = slow.start_engine(hold=ids[2:])
        shard = asyncio.create_task(slow.run_shard(slow.replica(engine)))
        await until(lambda: engine.inside == set(ids[2:]) and len(engine.order) == 6, "two answers to be checked")
        engine.release()
        await asyncio.gather(shard, return_exceptions=True)
        assert isinstance(shard.exception(), EngineDeadError)

    asyncio.run(work())
    (struck,) = slow.board.struck
    assert ids[2] in struck[0]
    assert not {ids[0], ids[1]} & set(struck[0])
