"""A read task prepares its shards, notes what it reads, and takes no part on a node with other versions."""

from typing import Any

import pytest
import ray
from support.small_job import SmallJob

from magbatch.errors import JobError, ModelError
from magbatch.fleet import read_task
from magbatch.fleet.board import BoardState
from magbatch.fleet.read_task import BoardNotes, read_shards
from magbatch.pipeline.block import from_block
from magbatch.pipeline.reading import Deaths
from magbatch.versions import versions


@pytest.fixture
def board(local_ray: Any) -> Any:
    read_task._refusal.cache_clear()
    made = BoardState()
    made.differs("driver", versions())
    return local_ray(made)


def test_the_shards_of_a_task_become_blocks_in_their_order(job: SmallJob, board: Any) -> None:
    job.ask(10)
    job.begin()
    shards = [job.plan.shard(index) for index in range(job.plan.num_shards)]
    blocks = list(read_shards(job.job, shards, frozenset(), board))
    found = [prompts for block in blocks for prompts in from_block(block)]
    assert [prompts.shard for prompts in found] == [shard.index for shard in shards]
    assert sorted(prompt.row_id for prompts in found for prompt in prompts.prompts) == sorted(job.row_ids())
    assert board.called("reads") == [(shard.index,) for shard in shards]
    assert board.called("has_read")[-1] == (shards[-1].index,)


def test_what_stops_the_job_is_on_the_board_before_ray_has_it(
    job: SmallJob, board: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise ModelError("model.source /m: there is no such directory")

    monkeypatch.setattr(read_task, "prepare", refuse)
    job.ask(1)
    job.begin()
    with pytest.raises(JobError):
        list(read_shards(job.job, [job.plan.shard(0)], frozenset(), board))
    assert isinstance(board.state.snapshot().failure, ModelError)


def test_a_reader_on_a_node_with_other_versions_ends_and_the_board_is_asked_once(
    job: SmallJob, board: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.ask(1)
    monkeypatch.setattr(read_task, "versions", lambda: versions() | {"ray": "1.0.0"})

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(read_task.os, "_exit", end)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            next(read_shards(job.job, [], frozenset(), board, refused_s=0.0))
        assert ended.value.code == 1
    assert len(board.called("refuse_reader")) == 2
    assert len(board.called("differs")) == 1


def test_reading_goes_on_while_the_board_is_out_of_reach(board: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = BoardNotes(board)
    notes.begin(4)
    notes.row(4, "a")
    assert notes.begin(4) == Deaths(1, {"a": 1}, {"": 1}), "another reader: the first died at this row"
    notes.end(4)

    def away(_: Any) -> Any:
        raise ray.exceptions.ActorUnavailableError("the network was away", b"0" * 16)

    monkeypatch.setattr(ray, "get", away)
    assert notes.begin(4) == Deaths()
    notes.row(4, "b")
