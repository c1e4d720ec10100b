"""The replicas of one run, placed and fed by Ray Data.

Ray Data is the engine of this: a Datasource whose read tasks yield one block for each shard, an
autoscaling pool of actors that answer them, its backpressure, its retries. Nothing here schedules
work by hand. What a task returns is a small record; the rows were committed by the replica.
"""

import functools
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from magbatch.engines.defaults import DEVICES_A_NODE, engine_args
from magbatch.errors import ClusterError, EngineStartError, InterruptedJobError, JobError, StorageError, one_line
from magbatch.fleet.board import BoardState
from magbatch.fleet.placement import PlacementNotice, blocks_ahead, open_shards, remote_args
from magbatch.fleet.pool import Pool, set_blocks_ahead
from magbatch.fleet.sharing import OWNERS_PRIORITY, Claim, Shares
from magbatch.fleet.vital import Vital
from magbatch.fleet.worker import Worker, this_node
from magbatch.ledger.holder import LeaseToken
from magbatch.ledger.ledger import Ledger
from magbatch.model.checkpoint import locate
from magbatch.pipeline.context import JobContext
from magbatch.pipeline.prepare import prepare
from magbatch.pipeline.reading import Deaths
from magbatch.plan.plan import Plan
from magbatch.replica.board import Snapshot, SnapshotObserver, State, silence_s
from magbatch.rows import Shard
from magbatch.spec import JobSpec
from magbatch.spec.columns import carried_columns
from magbatch.versions import versions

MAX_READ_TASK_ROWS = 2048  # a task that starts in the middle of a row group decodes its beginning again
READ_TASKS_WANTED = 16  # of a small job, so that every core reads
MAX_FAILED_STARTS = 3  # of replacements, one after the other, while no replica is left
GROW_AT = 1.0  # of its shards that a pool holds: Ray's own 1.75 is never reached where no shard queues in an actor
POLL_S = 0.25
MESSAGE_CHARS = 500  # of what Ray says
REFUSED_S = 5.0  # for which a reader keeps its CPU of a node with other versions
CLAIM_S = 1.0  # between two words with the other jobs of a cluster
STOP_GRACE_S = 30.0
END_GRACE_S = 10.0


@contextmanager
def _ray_errors_as_the_jobs() -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayError as error:
        raise _as_job_error(error, Snapshot()) from error


@_ray_errors_as_the_jobs()
def supervise(
    job: JobContext,
    plan: Plan,
    done: "np.ndarray[Any, np.dtype[np.int64]]",
    watch: SnapshotObserver,
    stop: threading.Event,
    hold: LeaseToken,
    vital: Vital,
    *,
    any_may_have_rows: bool,
    silence: float | None = None,
) -> Snapshot:
    """Have the open rows answered on the cluster that this process is connected to; see `fleet.run_fleet`.

    Args:
        job: The job.
        plan: Its plan.
        done: Rows of each shard that the ledger already holds.
        watch: Is shown the state a few times a second; may end the run.
        stop: Is set to have the replicas commit what is finished, and end.
        hold: The run's lease.
        vital: What a local Ray cannot do without.
        any_may_have_rows: Each shard is looked up in the ledger again when its turn comes.
        silence: Seconds without a report after which a replica is ended; None takes them from the spec.

    Raises:
        JobError: As its kinds say.
    """
    # Beside the driver: the board must not go with a spot node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    rows = int((plan.shard_sizes - done).clip(0).sum())
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(BoardState).remote(
        rows,
        job.spec.replicas.start_timeout_s,
        silence_s(job.spec.limits.row_timeout_s) if silence is None else silence,
    )
    ray.get(board.differs.remote(this_node(), versions()))  # the driver's are the job's
    spec = job.spec
    slots = int(engine_args(spec, locate(spec.model, weights=False).facts)["max_num_seqs"])
    dataset = _dataset(job, plan, done, board, hold, slots, any_may_have_rows=any_may_have_rows)
    shared = bool(os.environ.get("RAY_ADDRESS"))
    pool, places = Pool(dataset, spec.replicas, slots / spec.sampling.n, shared=shared), PlacementNotice(spec.replicas)
    share = _Share(job.spec, hold.root, pool, board) if shared else None
    failure: list[BaseException] = []
    ends: JobError | None = None
    ending = threading.Event()

    def work() -> None:
        try:
            for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if ending.is_set():
                    return
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which knows what it means
            failure.append(error)

    thread = threading.Thread(target=work, name="ray-data", daemon=True)
    thread.start()
    deadline = math.inf
    try:
        while thread.is_alive():
            thread.join(POLL_S)
            if (why := vital.broken()) is not None:
                raise ClusterError(why)
            snapshot: Snapshot = ray.get(board.snapshot.remote())
            ends = ends or watch(snapshot)
            if ends is not None or stop.is_set():
                ending.set()
            pool.bound(rows - snapshot.done.rows, share.claim(snapshot) if share is not None else None)
            if (why := places.look(snapshot, pool.waiting(snapshot))) is not None:
                board.trouble.remote(why)
            for name, actor in snapshot.silent:
                _end_silent(name, actor, pool, board)
            if snapshot.failure is not None:
                raise snapshot.failure
            if snapshot.engine_error is not None and (
                snapshot.starting or (not snapshot.replicas and snapshot.failed_starts >= MAX_FAILED_STARTS)
            ):
                raise _not_started(snapshot)
            if ending.is_set() and deadline == math.inf:
                deadline = time.monotonic() + STOP_GRACE_S
                board.stop.remote()
            if time.monotonic() > deadline or (ending.is_set() and snapshot.starting):
                break
    finally:
        if share is not None:
            share.end()
        broken = vital.broken() is not None
        # Ray must not be shut down under Ray Data's running threads: that ends this process with a
        # segmentation fault now and then (seen, Ray 2.60).
        if thread.is_alive() and not broken:
            pool.shutdown()
        thread.join(0.0 if broken else END_GRACE_S)
    last: Snapshot = ray.get(board.snapshot.remote())
    watch(last)
    if ends is not None and last.done.rows < rows:
        raise ends
    if stop.is_set():
        late = time.monotonic() > deadline
        raise InterruptedJobError(
            f"stopped before every replica had committed what it had finished (within {STOP_GRACE_S:.0f} s)"
            if late
            else "stopped; every finished row is committed"
        )
    if failure:
        raise _as_job_error(failure[0], last)
    return last


def _end_silent(name: str, actor: str, pool: Pool, board: Any) -> None:
    """End a replica that does not report: its event loop stands still, and nothing in its process can end it."""
    handle = pool.running(actor)
    if handle is None:  # its process went, with its node perhaps: no row did that
        board.left.remote(name, "its process or its node has gone; its open rows are asked again")
        return
    ray.get(board.froze.remote(name))  # before the next one asks for the strikes
    with suppress(ray.exceptions.RayError):  # it has just ended
        ray.kill(handle, no_restart=False)


class _Shards(Datasource):
    """A job's open shards as Ray Data's input."""

    def __init__(
        self,
        job: JobContext,
        shards: Callable[[], Iterable[Shard]],
        tasks: int,
        may_have_rows: frozenset[int],
        board: Any,
    ) -> None:
        super().__init__()
        self._job, self._shards, self._tasks, self._may_have_rows = job, shards, tasks, may_have_rows
        self._board = board

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: images are decoded on the way."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Read tasks over runs of neighbouring shards."""
        shards = list(self._shards())
        size = math.ceil(len(shards) / self._tasks)
        return [
            ReadTask(
                functools.partial(
                    _read, self._job, run, self._may_have_rows.intersection(shard.index for shard in run), self._board
                ),
                BlockMetadata(num_rows=len(run), size_bytes=None, input_files=None, exec_stats=None),
            )
            for run in (shards[begin : begin + size] for begin in range(0, len(shards), size))
        ]


class _Notes:
    """The board's log of what is being read, from inside a reader.

    A board that is out of reach for a moment stops no reading: it is told nothing, and knows nothing.
    """

    def __init__(self, board: Any) -> None:
        self._board = board

    def begin(self, shard: int) -> Deaths:
        """See `ReadLog.begin`."""
        try:
            deaths: Deaths = ray.get(self._board.reads.remote(shard))
        except ray.exceptions.ActorUnavailableError:
            return Deaths()
        return deaths

    def row(self, shard: int, row_id: str | None) -> None:
        """See `ReadLog.row`."""
        with suppress(ray.exceptions.ActorUnavailableError):
            ray.get(self._board.reads_row.remote(shard, row_id))

    def end(self, shard: int) -> None:
        """See `ReadLog.end`."""
        self._board.has_read.remote(shard)


def _read(job: JobContext, shards: list[Shard], may_have_rows: frozenset[int], board: Any) -> Iterator[pa.Table]:
    """`prepare`, as a read task."""

    def wait(error: StorageError) -> None:
        board.input_refused.remote(f"the input's storage refuses, trying again: {error}")

    if (why := _refusal(board)) is not None:
        time.sleep(REFUSED_S)
        ray.get(board.refuse_reader.remote(why))
        os._exit(1)  # Ray gives the task to another process, on another node where there is one
    try:
        ledger = Ledger(job.spec.output.path, job.spec.output.patience_s, wait, plan_id=job.plan_id)
        look_up = functools.partial(ledger.look_up, may_have_rows)
        yield from prepare(job, shards, may_have_rows, look_up, wait, _Notes(board))
    except JobError as error:
        ray.get(board.failed.remote(error))
        raise


@functools.lru_cache(maxsize=1)
def _refusal(board: Any) -> str | None:
    """Why this process' node takes no part; asked once by a process, not by each of its tasks."""
    why: str | None = ray.get(board.differs.remote(this_node(), versions()))
    return why


def _quiet() -> None:
    """What Ray would print beside the progress line; its log files keep everything."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)


def _dataset(
    job: JobContext,
    plan: Plan,
    done: "np.ndarray[Any, np.dtype[np.int64]]",
    board: Any,
    hold: LeaseToken,
    slots: int,
    *,
    any_may_have_rows: bool,
) -> ray.data.Dataset:
    spec = job.spec
    context = ray.data.DataContext.get_current()
    _quiet()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # every block goes out as it is made: one shard, never several
    context.memory_usage_poll_interval_s = None  # a thread for each open shard, for statistics that nobody reads
    context.wait_for_min_actors_s = 0  # the first replica that is up begins
    context.autoscaling_config.actor_pool_util_upscaling_threshold = GROW_AT

    sizes = plan.shard_sizes
    open_indices = np.flatnonzero(done < sizes)
    may_have_rows = frozenset(int(index) for index in open_indices if any_may_have_rows or done[index] > 0)
    rows = int((sizes - done)[open_indices].sum())
    shard_rows = max(1, int(sizes[open_indices].mean()))
    per_task = max(1, min(MAX_READ_TASK_ROWS, rows // READ_TASKS_WANTED) // shard_rows)
    tasks = math.ceil(len(open_indices) / per_task)
    tasks = math.ceil(len(open_indices) / math.ceil(len(open_indices) / tasks))  # as many as come out of even runs
    source = _Shards(job, lambda: (plan.shard(int(index)) for index in open_indices), tasks, may_have_rows, board)

    columns = spec.input.columns
    images = bool(columns.images or columns.messages or columns.document)
    longest = spec.limits.max_prompt_tokens
    # Ray Data's driver takes blocks a few times a second; its own 2 for each read task kept a fast engine waiting.
    plain = not images and set(carried_columns(spec.input)) <= {columns.id}
    set_blocks_ahead(context, blocks_ahead(shard_rows, longest, plain=plain))
    concurrency = open_shards(slots, shard_rows, len(open_indices), spec.replicas.max, longest, images=images)
    pool = ray.data.ActorPoolStrategy(
        min_size=max(1, spec.replicas.min),  # Ray takes no 0; an execution begins only where rows wait
        max_size=spec.replicas.max,
        max_tasks_in_flight_per_actor=concurrency,
        max_concurrent_calls_per_actor=concurrency,
    )
    blocks = ray.data.read_datasource(
        source,
        override_num_blocks=tasks,
        num_cpus=1,
    )
    return blocks.map_batches(
        Worker,
        fn_constructor_args=(job, board, may_have_rows, hold),
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        **remote_args(spec.replicas),
    )


class _Share:
    """This job's part in the sharing of a cluster: see `shares`.

    Args:
        spec: The job's.
        root: Its output, by which the others know it.
        pool: Its replicas.
        board: Passes on what is to be given back.
    """

    def __init__(self, spec: JobSpec, root: str, pool: Pool, board: Any) -> None:
        self._spec, self._pool, self._board = spec, pool, board
        self._job = f"{root}/{uuid.uuid4().hex[:8]}"
        self._claimed = -math.inf
        self._cap: int | None = None
        self._asked: Any = None
        self._told = False
        # Of no job: the one that came first may be the first to end. What it knows is told anew every second.
        self._shares: Any = (
            ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_restarts=-1)(Shares)
            .options(name="shares", namespace="magbatch", lifetime="detached", get_if_exists=True)
            .remote()
        )

    def claim(self, snapshot: Snapshot) -> int | None:
        """Say what the job has and wants, and do what it is told, now and then; never waits for it.

        Returns:
            Replicas that it may have; None where nobody else waits for any.
        """
        now = time.monotonic()
        if now - self._claimed < CLAIM_S:
            return self._cap
        if self._asked is not None:
            if not ray.wait([self._asked], timeout=0)[0]:
                return self._cap
            # Sharing ends no job: its node may have gone (it is begun anew, and told everything), or be of another age.
            with suppress(ray.exceptions.RayError):
                ruling = ray.get(self._asked)
                self._cap = ruling["cap"]
                self._tell(ruling.get("priority"))  # an actor of an earlier version says nothing of it
                if ruling["give_back"]:
                    self._pool.retire(ray.get(self._board.give_back.remote(ruling["give_back"])))
        self._claimed = now
        replicas = self._spec.replicas
        claim = Claim(
            job=self._job,
            kind=f"{'GPU' if replicas.gpus else 'CPU'} of {'; '.join(map(str, replicas.prefer)) or 'any node'}",
            size=float(replicas.gpus or replicas.cpus),
            priority=replicas.priority,
            # Devices on several nodes are one placement group, which Ray keeps until the job ends.
            least=replicas.min if replicas.gpus <= DEVICES_A_NODE else replicas.max,
            holds=snapshot.replicas + snapshot.count(State.STARTING),
            waiting=self._pool.waiting(snapshot),
        )
        self._asked = self._shares.claim.remote(asdict(claim))
        return self._cap

    def _tell(self, priority: int | None) -> None:
        """Say once that the cluster's owner holds the job to a lower priority."""
        if priority is not None and not self._told:
            self._told = True
            self._board.trouble.remote(
                f"replicas.priority {self._spec.replicas.priority}: this cluster's owner allows {priority} at most "
                f"({OWNERS_PRIORITY}), which is what counts"
            )

    def end(self) -> None:
        """The job wants nothing any more."""
        self._shares.end.remote(self._job)


def _as_job_error(error: BaseException, snapshot: Snapshot) -> JobError:
    """What broke: the error that a task or a replica met, which Ray hands on as text only, else Ray's own."""
    if snapshot.failure is not None:
        return snapshot.failure
    if snapshot.engine_error is not None:
        return _not_started(snapshot)
    lines = [one_line(line, MESSAGE_CHARS) for line in str(error).splitlines()]
    said = [line for line in lines if line] or [type(error).__name__]
    return ClusterError(f"Ray stopped the job: {type(error).__name__}: {said[-1]}")


def _not_started(snapshot: Snapshot) -> EngineStartError:
    """The error of a run whose engines do not start: the engine's words, and where it said more."""
    error = EngineStartError(snapshot.engine_error)
    error.add_note(f"The engine's {snapshot.failed_home.logs()}")
    return error
