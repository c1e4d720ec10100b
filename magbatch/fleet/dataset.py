"""A job as a Ray Data dataset: one block for each open shard, read by read tasks, answered by a pool of actors.

Ray Data schedules, applies backpressure and retries. Rows leave through the replicas' commits, never through the
dataset.
"""

import functools
import logging
import math
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from magbatch.fleet.placement import blocks_ahead, open_shards, remote_args
from magbatch.fleet.ray_private import set_blocks_ahead
from magbatch.fleet.read_task import read_shards
from magbatch.fleet.worker import Worker
from magbatch.ledger.holder import LeaseToken
from magbatch.pipeline.context import JobContext
from magbatch.plan.plan import Plan
from magbatch.rows import Shard
from magbatch.spec.columns import carried_columns

MAX_READ_TASK_ROWS = 2048  # rows of a read task; a task that starts inside a row group decodes the group's start again
READ_TASKS_WANTED = 16  # least number of read tasks, if a job has that many shards: then every core reads
GROW_AT = 1.0  # used share of the shards that actors can hold, at which a pool grows; Ray's 1.75 needs queued shards


@dataclass(frozen=True, slots=True)
class OpenShards:
    """The shards of a plan that a run is to answer.

    Attributes:
        plan: Plan with all shards of the job.
        indices: int array (open shards,): indices of the open shards, ascending.
        may_have_rows: Indices of open shards that may have committed rows.
        rows: Open rows of all open shards.
    """

    plan: Plan
    indices: "np.ndarray[Any, np.dtype[np.int64]]"
    may_have_rows: frozenset[int]
    rows: int

    @classmethod
    def of(cls, plan: Plan, done: "np.ndarray[Any, np.dtype[np.int64]]", *, any_may_have_rows: bool = False) -> Self:
        """Find the open shards.

        Args:
            plan: Plan with all shards of the job.
            done: int64 array (shards,): committed rows of each shard.
            any_may_have_rows: Whether any open shard may have rows that `done` does not count.
        """
        sizes = plan.shard_sizes
        indices = np.flatnonzero(done < sizes)
        may_have_rows = frozenset(int(index) for index in indices if any_may_have_rows or done[index] > 0)
        return cls(plan, indices, may_have_rows, int((sizes - done)[indices].sum()))

    @property
    def shard_rows(self) -> int:
        """Mean rows of an open shard, at least 1."""
        return max(1, int(self.plan.shard_sizes[self.indices].mean()))

    @property
    def read_tasks(self) -> int:
        """Number of read tasks into which the shards are cut.

        Example: 100 open shards of 50 rows are 5,000 rows, so 312 for each of 16 tasks. A task takes whole shards, here
        6, which makes 17 tasks.
        """
        per_task = max(1, min(MAX_READ_TASK_ROWS, self.rows // READ_TASKS_WANTED) // self.shard_rows)
        return math.ceil(len(self.indices) / per_task)

    def shards(self) -> Iterable[Shard]:
        """The open shards, in the order of the plan."""
        return (self.plan.shard(int(index)) for index in self.indices)


class ShardSource(Datasource):
    """A job's open shards as Ray Data's input.

    Args:
        job: Spec and planned columns of the job.
        shards: Function that gives the open shards, in the order of the plan.
        tasks: Number of read tasks into which they are cut.
        may_have_rows: Indices of shards that may have committed rows.
        board: Ray's handle of the board.
    """

    def __init__(
        self,
        job: JobContext,
        shards: Callable[[], Iterable[Shard]],
        tasks: int,
        may_have_rows: frozenset[int],
        board: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._job, self._shards, self._tasks, self._may_have_rows = job, shards, tasks, may_have_rows
        self._board = board

    def estimate_inmemory_data_size(self) -> int | None:
        """None: the size is unknown, because images are decoded on the way."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Read tasks over runs of neighbouring shards."""
        shards = list(self._shards())
        size = math.ceil(len(shards) / self._tasks)
        return [self._task(shards[begin : begin + size]) for begin in range(0, len(shards), size)]

    def _task(self, run: list[Shard]) -> ReadTask:
        looked_up = self._may_have_rows.intersection(shard.index for shard in run)
        return ReadTask(
            functools.partial(read_shards, self._job, run, looked_up, self._board),
            BlockMetadata(num_rows=len(run), size_bytes=None, input_files=None, exec_stats=None),
        )


def answered(job: JobContext, shards: OpenShards, board: Any, token: LeaseToken, slots: int) -> ray.data.Dataset:
    """The dataset whose execution answers the open shards of a job.

    Args:
        job: Spec and planned columns of the job.
        shards: Open shards of the job.
        board: Ray's handle of the board.
        token: Token of the run's lease, which each replica checks.
        slots: Engine slots of one replica.
    """
    _configure(job, shards)
    source = ShardSource(job, shards.shards, shards.read_tasks, shards.may_have_rows, board)
    replicas = job.spec.replicas
    prepared = ray.data.read_datasource(source, override_num_blocks=shards.read_tasks, num_cpus=1)
    dataset: ray.data.Dataset = prepared.map_batches(
        Worker,
        fn_constructor_args=(job, board, shards.may_have_rows, token),
        batch_size=1,
        batch_format="pyarrow",
        compute=_pool(job, shards, slots),
        **remote_args(replicas),
    )
    return dataset


def _pool(job: JobContext, shards: OpenShards, slots: int) -> ray.data.ActorPoolStrategy:
    columns, replicas = job.spec.input.columns, job.spec.replicas
    at_once = open_shards(
        slots,
        shards.shard_rows,
        len(shards.indices),
        replicas.max,
        job.spec.limits.max_prompt_tokens,
        images=bool(columns.images or columns.messages or columns.document),
    )
    return ray.data.ActorPoolStrategy(
        min_size=max(1, replicas.min),  # Ray accepts no 0; an execution starts only if rows are open
        max_size=replicas.max,
        max_tasks_in_flight_per_actor=at_once,
        max_concurrent_calls_per_actor=at_once,
    )


def _configure(job: JobContext, shards: OpenShards) -> None:
    """Set Ray Data's context for the execution that follows."""
    context = ray.data.DataContext.get_current()
    _quiet()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # bytes; so each block leaves at once, with one shard
    context.memory_usage_poll_interval_s = None  # otherwise a thread for each open shard gathers unused statistics
    context.wait_for_min_actors_s = 0  # the first replica that is up starts to work
    context.autoscaling_config.actor_pool_util_upscaling_threshold = GROW_AT
    columns = job.spec.input.columns
    images = bool(columns.images or columns.messages or columns.document)
    plain = not images and set(carried_columns(job.spec.input)) <= {columns.id}
    # Ray Data's driver takes blocks a few times a second. Its default of 2 for each task kept a fast engine waiting.
    set_blocks_ahead(context, blocks_ahead(shards.shard_rows, job.spec.limits.max_prompt_tokens, plain=plain))


def _quiet() -> None:
    """Keep Ray's messages from the terminal, where the progress line is; Ray's log files have them all."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)


class Consumer(threading.Thread):
    """The execution of a dataset in its own thread; the tasks' results are dropped.

    Args:
        dataset: Dataset to execute, as `answered` builds it.

    Attributes:
        failure: The error that ended the execution; None if none did.
    """

    def __init__(self, dataset: ray.data.Dataset) -> None:
        super().__init__(name="ray-data", daemon=True)
        self._dataset = dataset
        self._ending = threading.Event()
        self.failure: BaseException | None = None

    @property
    def is_ending(self) -> bool:
        """Whether the execution was told to end."""
        return self._ending.is_set()

    def end(self) -> None:
        """End the execution with the next block that comes back."""
        self._ending.set()

    def run(self) -> None:
        """Run the dataset to its end, or until `end` is called."""
        try:
            for _ in self._dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if self._ending.is_set():
                    return
        except Exception as error:  # noqa: BLE001 - a thread's boundary: the driver's loop reads it
            self.failure = error
