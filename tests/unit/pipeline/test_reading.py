"""Readers that died: the row at fault is found, and is not read again after a few deaths."""

import pyarrow as pa
import pytest
from support.small_job import SmallJob

from magbatch.errors import ErrorCode, Step
from magbatch.pipeline.block import from_block
from magbatch.pipeline.prepare import prepare
from magbatch.pipeline.reading import MOST_DEATHS, Deaths, ReadLog


class Noted(ReadLog):
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, int, str | None]] = []

    def begin(self, shard: int) -> Deaths:
        self.told.append(("begin", shard, None))
        return super().begin(shard)

    def row(self, shard: int, row_id: str | None) -> None:
        self.told.append(("row", shard, row_id))
        super().row(shard, row_id)

    def end(self, shard: int) -> None:
        self.told.append(("end", shard, None))
        super().end(shard)


def test_a_shard_that_is_begun_twice_has_lost_its_reader() -> None:
    log = ReadLog()
    assert log.begin(4) == Deaths()
    log.end(4)
    assert log.begin(4) == Deaths()  # read, and its block lost: nobody died
    assert log.begin(4) == Deaths(1)
    log.row(4, "r-1")
    assert log.begin(4) == Deaths(2, {"r-1": 1}, {"r": 1})
    log.row(4, "r-1")
    log.row(4, None)
    assert log.begin(4) == Deaths(3, {"r-1": 1}, {"r": 1})  # between two rows
    assert log.begin(5) == Deaths(files={"r": 1})


def test_a_row_is_given_up_after_three_readers_and_a_shard_after_many() -> None:
    assert Deaths(1).letter("r") is None
    assert Deaths(2, {"r": 1}).letter("r") is None
    letter = Deaths(3, {"r": 2}).letter("r")
    assert letter is not None
    assert (letter.step, letter.code) == (Step.READ, ErrorCode.READER_KILLER)
    assert Deaths(3, {"r": 2}).letter("s") is None
    assert Deaths(MOST_DEATHS, {}).letter("s") is not None


def blocks(job: SmallJob, log: ReadLog) -> dict[str, list[str]]:
    """Ids of the rows that have prompts, and of dead letters, of the whole job."""
    shards = [job.plan.shard(index) for index in range(len(job.plan.shard_sizes))]
    works = [
        work
        for block in prepare(job.job, job.steps, shards, frozenset(), lambda: job.ledger.look_up([]), notes=log)
        for work in from_block(block)
    ]
    return {
        "asked": [prompt.row_id for work in works for prompt in work.prompts],
        "dead": [letter.row_id for work in works for letter in work.failed],
        "carried": [value for work in works for value in work.carried.column("id").to_pylist()],
    }


@pytest.fixture
def three(job: SmallJob) -> SmallJob:
    """Three shards of four rows."""
    job.ask(12)
    job.set("input", shard_rows=4)
    return job


def test_a_job_that_goes_well_notes_each_shard_and_no_row(three: SmallJob) -> None:
    log = Noted()
    assert blocks(three, log)["asked"] == three.row_ids()
    assert sorted(log.told) == sorted([(what, shard, None) for shard in range(3) for what in ("begin", "end")])


def test_after_a_death_each_row_of_the_shard_is_noted_before_it_is_read(three: SmallJob) -> None:
    log = Noted()
    log.begin(1)
    assert blocks(three, log)["asked"] == three.row_ids()
    rows = [row_id for what, shard, row_id in log.told if what == "row" and shard == 1]
    assert rows == [row_id for one in three.row_ids()[4:8] for row_id in (one, None)]
    assert {shard for what, shard, _ in log.told if what == "row"} == {1}


def test_a_row_at_which_readers_died_is_a_dead_letter_and_is_not_touched(three: SmallJob) -> None:
    log, row_id = Noted(), three.row_ids()[6]
    for _ in range(3):
        log.begin(1)
        log.row(1, row_id)
    log.told.clear()
    found = blocks(three, log)
    assert found["dead"] == [row_id]
    assert sorted([*found["asked"], row_id]) == three.row_ids()
    assert ("row", 1, row_id) not in log.told
    assert sorted(str(value) for value in found["carried"]) == sorted(
        [*(f"a{number}" for number in range(12) if number != 6), "None"]
    )


def test_rows_that_cannot_be_told_apart_die_with_their_shard(three: SmallJob) -> None:
    log = ReadLog()
    for _ in range(MOST_DEATHS + 1):
        log.begin(2)
    found = blocks(three, log)
    assert found["dead"] == three.row_ids()[8:]
    assert found["asked"] == three.row_ids()[:8]


def test_rows_that_stand_between_each_other_are_read_one_by_one_too(job: SmallJob) -> None:
    """Grouped by a text that repeats: three shards are read in one pass, unless a reader died at it."""
    texts = ["one " * 300, "two " * 300, "three " * 300]
    job.write(pa.table({"id": [f"a{n}" for n in range(12)], "question": [texts[n % 3] for n in range(12)]}))
    job.set("input", shard_rows=4, group="question")
    for deaths in range(3):
        log = Noted()
        for shard in range(deaths):
            log.begin(shard)
        assert sorted(blocks(job, log)["asked"]) == sorted(job.row_ids())
        assert {shard for what, shard, _ in log.told if what == "row"} == set(range(deaths))


def test_a_file_whose_rows_end_many_readers_ends_no_more(three: SmallJob) -> None:
    """Other shards of the file are not begun as a whole either."""
    three.ask(4, "b.parquet")
    log, row_ids = Noted(), three.row_ids()[:12]
    for number in range(MOST_DEATHS + 1):
        log.begin(0)
        log.row(0, row_ids[number % 4])
    log.begin(0)
    log.end(0)
    log.told.clear()
    found = blocks(three, log)
    assert found["dead"] == row_ids
    assert found["asked"] == three.row_ids()[12:]
    assert len(found["asked"]) == 4
    assert not [row_id for what, _, row_id in log.told if what == "row" and row_id in row_ids]
