"""The open shards of a job become read tasks over runs of neighbours, and an execution that can be ended."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from magbatch.fleet.dataset import MAX_READ_TASK_ROWS, READ_TASKS_WANTED, Consumer, OpenShards, ShardSource


class Plan:
    """A plan of which only the sizes of shards count."""

    def __init__(self, *sizes: int) -> None:
        self.shard_sizes = np.array(sizes, dtype=np.int64)

    def shard(self, index: int) -> Any:
        return SimpleNamespace(index=index)


def opened(plan: Any, done: list[int], **options: Any) -> OpenShards:
    return OpenShards.of(plan, np.array(done, dtype=np.int64), **options)


def test_a_shard_is_open_until_all_its_rows_are_committed() -> None:
    shards = opened(Plan(4, 4, 4, 2), [4, 1, 0, 2])
    assert (shards.indices.tolist(), shards.rows, shards.shard_rows) == ([1, 2], 3 + 4, 4)
    assert shards.may_have_rows == {1}, "of the other it is known that it has none"
    assert [shard.index for shard in shards.shards()] == [1, 2]
    assert opened(Plan(4, 4), [4, 0], any_may_have_rows=True).may_have_rows == {1}
    assert opened(Plan(4, 4), [5, 0]).rows == 4, "rows that two attempts have committed take none from another shard"


@pytest.mark.parametrize(
    ("shards", "rows", "tasks"),
    [
        (100, 50, 17),  # see OpenShards.read_tasks
        (4, 10, 4),  # a small job: every core reads
        (10_000, 100, math.ceil(10_000 / (MAX_READ_TASK_ROWS // 100))),
        (3, 5000, 3),  # a shard is never cut
        (1, 1, 1),
    ],
)
def test_read_tasks_are_many_enough_for_all_cores_and_none_is_too_long(shards: int, rows: int, tasks: int) -> None:
    found = opened(Plan(*[rows] * shards), [0] * shards)
    assert found.read_tasks == tasks
    assert found.read_tasks >= min(shards, READ_TASKS_WANTED)


def test_each_shard_is_in_one_task_with_its_neighbours() -> None:
    found = opened(Plan(*[50] * 100), [0] * 40 + [3] + [0] * 59)
    source = ShardSource("job", found.shards, found.read_tasks, found.may_have_rows, "board")  # type: ignore[arg-type]
    tasks = source.get_read_tasks(1)
    assert len(tasks) == found.read_tasks
    arguments = [task.read_fn.args for task in tasks]
    assert [shard.index for _, run, _, _ in arguments for shard in run] == list(range(100))
    assert [looked_up for *_, looked_up, _ in arguments if looked_up] == [{40}]
    assert [task.metadata.num_rows for task in tasks] == [len(run) for _, run, _, _ in arguments]
    assert source.estimate_inmemory_data_size() is None


class Dataset:
    """A dataset whose blocks a test gives."""

    def __init__(self, blocks: Any) -> None:
        self.blocks, self.taken = blocks, 0

    def iter_batches(self, **_: Any) -> Any:
        for block in self.blocks:
            if isinstance(block, Exception):
                raise block
            self.taken += 1
            yield block


def run(dataset: Any) -> Consumer:
    consumer = Consumer(dataset)
    consumer.start()
    consumer.join(10)
    return consumer


def test_an_execution_runs_to_its_end_and_keeps_what_ended_it() -> None:
    whole = Dataset([1, 2, 3])
    assert (run(whole).failure, whole.taken) == (None, 3)
    failure = RuntimeError("no more workers")
    assert run(Dataset([1, failure])).failure is failure


def test_an_execution_that_is_told_to_end_takes_no_more_than_one_block() -> None:
    dataset: Any = Dataset(iter(range(1000)))
    consumer = Consumer(dataset)
    consumer.end()
    consumer.start()
    consumer.join(10)
    assert (consumer.is_ending, dataset.taken, consumer.failure) == (True, 1, None)
