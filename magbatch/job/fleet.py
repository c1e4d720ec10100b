"""The replicas of one run, placed and fed by Ray Data: the only file of a run that imports ray.

Ray Data is the engine of this: a Datasource whose read tasks yield one block for each shard, an
autoscaling pool of actors that answer them, its backpressure, its retries. Nothing here schedules
work by hand. What a task returns is a small record; the rows were committed by the replica.
"""

import functools
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Before ray is imported: under `uv run`, Ray would re-create the uv environment for every worker.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# A replica of several GPUs holds none itself, its placement group does: Ray must not hide them from it.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray Data's own actor arguments make Ray's core print an error for every job (ray issue 53727).
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import numpy as np
import psutil
import pyarrow as pa
import ray
import ray.data
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

import magbatch
from magbatch.capture import STDERR, STDOUT, captured, last_words
from magbatch.engines import start
from magbatch.engines.base import Engine, EngineConfig
from magbatch.errors import ClusterError, EngineStartError, InterruptedJobError, JobError, LeaseError, StorageError
from magbatch.job import preempt
from magbatch.job.board import BoardState, Load, Snapshot, State, Use, Watch
from magbatch.job.lease import Hold
from magbatch.job.plan import Plan
from magbatch.job.prepare import Job, from_block, prepare
from magbatch.job.replica import REPORT_INTERVAL_S, Replica
from magbatch.model import engine_args, facts, locate
from magbatch.pipeline.prompt import Prompter
from magbatch.rows import Shard
from magbatch.spec import JobSpec
from magbatch.tokenizer import Tokenizer
from magbatch.totals import Totals

MAX_READ_TASK_ROWS = 2048  # a task that starts in the middle of a row group decodes its beginning again
READ_TASKS_WANTED = 16  # of a small job, so that every core reads
SLOTS_OF_SHARDS = 16  # shards kept open by stragglers: with 1% of rows 100 times as long, 25 times the slots' worth
MIN_OPEN_SHARDS = 4
MAX_OPEN_SHARDS = 256
MAX_OPEN_IMAGE_SHARDS = 64  # x 32 rows x 7 MB: 14 GB where every image has the largest size
MAX_FAILED_STARTS = 3  # of replacements, one after the other, while no replica is left
GROW_AT = 1.0  # of its shards that a pool holds: Ray's own 1.75 is never reached where no shard queues in an actor
UNPLACED_S = 15.0  # without any replica, until it is said why
UNPLACED_LOOK_S = 2.0  # between two looks at the cluster meanwhile
POLL_S = 0.25
STOP_GRACE_S = 30.0
LEAVE_S = 5.0  # for the board to note that a replica goes
SHUTDOWN_GRACE_S = 10.0
CONNECT_TIMEOUT_S = 10.0


class _Shards(Datasource):
    """A job's open shards as Ray Data's input."""

    def __init__(
        self, job: Job, shards: Callable[[], Iterable[Shard]], tasks: int, partly_done: frozenset[int], board: Any
    ) -> None:
        super().__init__()
        self._job, self._shards, self._tasks, self._partly_done = job, shards, tasks, partly_done
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
                    _read, self._job, run, self._partly_done.intersection(shard.index for shard in run), self._board
                ),
                BlockMetadata(num_rows=len(run), size_bytes=None, input_files=None, exec_stats=None),
            )
            for run in (shards[begin : begin + size] for begin in range(0, len(shards), size))
        ]


class _RayBoard:
    """The board, from inside a replica."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        """See `Board.begin`."""
        answer: tuple[bool, dict[str, int]] = await self._ask(self._handle.begin.remote(shard))
        return answer

    async def strike(self, rows: dict[int, list[str]]) -> None:
        """See `Board.strike`."""
        await self._ask(self._handle.strike.remote(rows))

    async def report(self, replica: str, done: Totals, use: Use, load: Load) -> bool:
        """See `Board.report`."""
        return bool(await self._ask(self._handle.report.remote(replica, done, use, load)))

    async def trouble(self, message: str) -> None:
        """See `Board.trouble`."""
        await self._ask(self._handle.trouble.remote(message))

    async def left(self, replica: str) -> None:
        """See `Board.left`."""
        await self._ask(self._handle.left.remote(replica))

    async def _ask(self, answer: Any) -> Any:
        try:
            return await answer
        except ray.exceptions.RayActorError:
            _die()  # the board stands beside the driver: a replica without one is a zombie, and commits no more
            raise


class _Worker:
    """The actor of one replica."""

    def __init__(self, job: Job, board: Any, touched: frozenset[int], hold: Hold) -> None:
        spec = job.spec
        name = uuid.uuid4().hex[:8]
        with suppress(StorageError):  # the replica looks again while it works
            if hold.is_lost():  # Ray starts a zombie's replicas anew, driver or no driver
                raise LeaseError(f"another run has taken {hold.root} over")
        ray.get(board.join.remote(name, ray.get_runtime_context().get_actor_id()))
        budget = threading.Timer(
            spec.replicas.start_timeout_s, _give_up_start, (name, spec.replicas.start_timeout_s, board)
        )
        budget.daemon = True
        budget.start()
        try:
            checkpoint = locate(spec.model, weights=spec.model.engine != "fake")
            args = engine_args(spec, facts(checkpoint))
            tokenizer = Tokenizer(checkpoint)
            engine = start(
                spec.model.engine,
                EngineConfig(checkpoint, args, spec.sampling, spec.replicas.gpus, spec.metrics.enabled),
                tokenizer,
            )
        except JobError as error:
            ray.get(board.engine_failed.remote(name, str(error)))
            raise
        finally:
            budget.cancel()
        ray.get(board.report.remote(name, Totals(), Use(), Load()))
        self._board = board
        self._begun = threading.Event()
        threading.Thread(target=_wait, args=(name, board, self._begun), name="waiting", daemon=True).start()
        # Without a reference to the worker: Ray Data lets go of one that it releases, and it says so as it goes.
        weakref.finalize(self, _release, name, board, self._begun, engine).atexit = False
        self._touched = touched
        self._replica = Replica(
            name, job, engine, tokenizer, Prompter(spec, checkpoint, tokenizer, int(args["max_model_len"])),
            slots=int(args["max_num_seqs"]), max_model_len=int(args["max_model_len"]),
            board=_RayBoard(board), die=_die, notice=preempt.notice, hold=hold,
        )  # fmt: skip

    async def __call__(self, block: pa.Table) -> pa.Table:
        self._begun.set()
        shards = block.column("shard").to_pylist()
        left = []
        for index, shard in enumerate(shards):
            unpack = functools.partial(next, from_block(block.slice(index, 1)))
            try:
                left.append(await self._replica.run(shard, unpack, untouched=shard not in self._touched))
            except JobError as error:
                await self._board.failed.remote(error)
                raise
        return pa.table({"shard": shards, "left": left})


def _wait(name: str, board: Any, begun: threading.Event) -> None:
    """Until its first rows come, a replica serves, and its slots are free; then it reports by itself."""
    began = time.monotonic()
    while not begun.wait(REPORT_INTERVAL_S):
        now = time.monotonic()
        board.report.remote(name, Totals(), Use(short_s=now - began), Load())
        began = now


def _release(name: str, board: Any, begun: threading.Event, engine: Engine) -> None:
    """Few rows are left, and others have them: the replica gives its devices back."""
    begun.set()
    with suppress(ray.exceptions.RayError):  # the board may be gone already
        ray.get(board.left.remote(name), timeout=LEAVE_S)
    engine.shutdown()


def _read(job: Job, shards: list[Shard], partly_done: frozenset[int], board: Any) -> Iterator[pa.Table]:
    """`prepare`, as a read task."""

    def wait(error: StorageError) -> None:
        board.input_refused.remote(f"the input's storage refuses, trying again: {error}")

    try:
        yield from prepare(job, shards, partly_done, wait)
    except JobError as error:
        ray.get(board.failed.remote(error))
        raise


def _give_up_start(name: str, seconds: float, board: Any) -> None:
    """An engine that never starts says nothing by itself: what it printed last may tell why."""
    said = last_words()
    message = f"the engine did not start within {seconds:,.0f} s (replicas.start_timeout_s)"
    ray.get(board.engine_failed.remote(name, f"{message}; its last words:\n{said}" if said else message))
    _die()


def _die() -> None:
    """At once, with the engine: an actor whose engine is gone, or hangs, would fail whatever Ray gives it."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)


def open_shards(slots: int, shard_rows: int, num_shards: int, max_replicas: int, *, images: bool) -> int:
    """Shards that one replica holds at once.

    Enough that shards held open by a few long rows do not keep the engine from others, and, in a
    small job, no more than leaves work for the other replicas. Ray's object store keeps the block of
    an open shard, decoded images included: with images there are fewer.
    """
    wanted = math.ceil(SLOTS_OF_SHARDS * slots / shard_rows)
    fair = math.ceil(num_shards / (2 * max_replicas))
    least = math.ceil(2 * slots / shard_rows) + 1
    most = MAX_OPEN_IMAGE_SHARDS if images else MAX_OPEN_SHARDS
    return max(MIN_OPEN_SHARDS, min(most, wanted, max(fair, least)))


def _placement(gpus: int, cpus: float) -> dict[str, Any]:
    """Ray's arguments for a replica: its devices, together on one node where one holds them."""
    if gpus <= 1:
        return {"num_cpus": cpus, "num_gpus": gpus}

    def strategy() -> dict[str, Any]:
        # vLLM's Ray executor puts one worker into each bundle; the replica itself sits in the first.
        bundles: list[dict[str, float]] = [{"GPU": 1.0, "CPU": cpus}, *({"GPU": 1.0} for _ in range(gpus - 1))]
        group = placement_group(bundles, strategy="PACK")
        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            )
        }

    return {"num_cpus": cpus, "num_gpus": 0, "ray_remote_args_fn": strategy}


class Unplaced:
    """Says why no replica has a place, when none has had one for a while; again only what has changed.

    Args:
        spec: The job's.
        cluster: Gives what the cluster has in all, and what is free.
    """

    def __init__(
        self, spec: JobSpec, cluster: Callable[[], tuple[dict[str, float], dict[str, float]]] | None = None
    ) -> None:
        self._gpus, self._cpus = spec.replicas.gpus, spec.replicas.cpus
        self._cluster = cluster or (lambda: (ray.cluster_resources(), ray.available_resources()))
        self._since = time.monotonic()
        self._said: str | None = None

    def look(self, snapshot: Snapshot) -> str | None:
        """What a person should be told now."""
        now = time.monotonic()
        if snapshot.replicas or snapshot.count(State.STARTING):
            self._since, self._said = now, None
            return None
        if now - self._since < UNPLACED_S:
            return None
        self._since = now - UNPLACED_S + UNPLACED_LOOK_S
        text = unplaced(self._gpus, self._cpus, *self._cluster())
        if text == self._said:
            return None
        self._said = text
        return text


def unplaced(gpus: int, cpus: float, total: dict[str, float], free: dict[str, float]) -> str:
    """What one replica asks for, and what the cluster has."""
    kinds = {"GPU": float(gpus), "CPU": cpus} if gpus else {"CPU": cpus}

    def amount(kind: str, number: float) -> str:
        return f"{number:g} {kind}{'' if number == 1 else 's'}"

    wanted = " and ".join(amount(kind, number) for kind, number in kinds.items())
    has = ", ".join(f"{amount(kind, total.get(kind, 0.0))} ({free.get(kind, 0.0):g} free)" for kind in kinds)
    short = any(total.get(kind, 0.0) < number for kind, number in kinds.items())
    return f"no replica has a place yet: one asks for {wanted}, the cluster has {has}; waiting for " + (
        "nodes to be added" if short else "room, or for a replica that has just got it to start"
    )


def _quiet() -> None:
    """What Ray would print beside the progress line; its log files keep everything."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)


def _knock(address: str) -> None:
    """Raises OSError at once where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


@contextmanager
def _cluster(spec: JobSpec) -> Iterator[None]:
    """The cluster of RAY_ADDRESS, or a local Ray that ends with this block, with all its processes.

    Raises:
        ClusterError: It cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise ClusterError(f"RAY_ADDRESS={address}: Ray Client is not supported; give the head node's host:6379")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    environment: dict[str, Any] = {"worker_process_setup_hook": preempt.listen}
    mine = psutil.Process()
    before = set(mine.children(recursive=True))
    try:
        if address:
            _knock(address)
            if RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ:  # else `submit` has sent both with the job
                # The package travels, so that the cluster runs the version that the user runs.
                package = str(Path(magbatch.__file__).parent)
                environment |= {"py_modules": [package], "env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
            ray.init(address=address, runtime_env=environment, **quiet)
        else:
            # Replicas must leave a CPU for reading, or nothing would ever reach them: Ray counts, it does not pin.
            cpus = max(os.cpu_count() or 1, math.ceil(spec.replicas.max * spec.replicas.cpus) + 1)
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, runtime_env=environment, **quiet)
    except Exception as error:  # Ray raises a bare one when a node is slow to start
        where = f"RAY_ADDRESS={address}" if address else "a local Ray"
        raise ClusterError(f"{where} cannot be used: {error}") from error
    try:
        yield
    finally:
        started = set(mine.children(recursive=True)) - before
        ray.shutdown()
        # Ray does not wait for its workers, nor they for their engines: none may outlive the command.
        _, left = psutil.wait_procs(started, timeout=SHUTDOWN_GRACE_S)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left)


def run_fleet(
    job: Job,
    plan: Plan,
    done: "np.ndarray[Any, np.dtype[np.int64]]",
    watch: Watch,
    hold: Hold,
    *,
    doubtful: bool,
) -> Snapshot:
    """Answer every open row of a job, once.

    Args:
        job: The job.
        plan: Its plan.
        done: Rows of each shard that the ledger already holds.
        watch: Is shown the state a few times a second.
        hold: The run's lease.
        doubtful: Replicas of an earlier run may have committed rows after `done` was counted: each shard is
            looked up in the ledger again when its turn comes.

    Returns:
        The last state.

    Raises:
        InterruptedJobError: SIGINT or SIGTERM came; what was finished is committed.
        EngineStartError: No engine started.
        StorageError: The output or the input's storage gave up.
        ClusterError: Ray broke down.
    """
    stop = threading.Event()
    # What Ray prints of its own accord (retries, lost workers) is in its log files; the progress line says
    # what a user needs. The signals are set twice, since Ray installs handlers of its own when it starts.
    with captured(STDOUT, STDERR, replay=False), _signals(stop), _cluster(job.spec), _signals(stop):
        try:
            return _supervise(job, plan, done, watch, stop, hold, doubtful=doubtful)
        except ray.exceptions.RayError as error:
            raise _as_job_error(error, Snapshot()) from error


def _supervise(
    job: Job,
    plan: Plan,
    done: "np.ndarray[Any, np.dtype[np.int64]]",
    watch: Watch,
    stop: threading.Event,
    hold: Hold,
    *,
    doubtful: bool,
) -> Snapshot:
    # Beside the driver: the board must not go with a spot node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    rows = int((plan.shard_sizes - done).clip(0).sum())
    board: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(BoardState).remote(
        rows, job.spec.replicas.start_timeout_s
    )
    dataset = _dataset(job, plan, done, board, hold, doubtful=doubtful)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                if stop.is_set():
                    return
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which knows what it means
            failure.append(error)

    thread = threading.Thread(target=work, name="ray-data", daemon=True)
    thread.start()
    deadline = math.inf
    unplaced = Unplaced(job.spec)
    try:
        while thread.is_alive():
            thread.join(POLL_S)
            snapshot: Snapshot = ray.get(board.snapshot.remote())
            watch(snapshot)
            if (why := unplaced.look(snapshot)) is not None:
                board.trouble.remote(why)
            if snapshot.engine_error is not None and (
                snapshot.starting or (not snapshot.replicas and snapshot.failed_starts >= MAX_FAILED_STARTS)
            ):
                raise EngineStartError(snapshot.engine_error)
            if stop.is_set() and deadline == math.inf:
                deadline = time.monotonic() + STOP_GRACE_S
                board.stop.remote()
            if time.monotonic() > deadline or (stop.is_set() and snapshot.starting):
                break
    finally:
        # Ray must not be shut down under Ray Data's running threads: that ends this process with a
        # segmentation fault now and then (seen, Ray 2.60). There is no public way to end an execution.
        if thread.is_alive() and dataset._current_executor is not None:
            dataset._current_executor.shutdown(force=True)
        thread.join(SHUTDOWN_GRACE_S)
    last: Snapshot = ray.get(board.snapshot.remote())
    watch(last)
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


def _dataset(
    job: Job, plan: Plan, done: "np.ndarray[Any, np.dtype[np.int64]]", board: Any, hold: Hold, *, doubtful: bool
) -> ray.data.Dataset:
    spec = job.spec
    context = ray.data.DataContext.get_current()
    _quiet()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # every block goes out as it is made: one shard, never several
    context.wait_for_min_actors_s = 0  # the first replica that is up begins
    context.autoscaling_config.actor_pool_util_upscaling_threshold = GROW_AT

    sizes = plan.shard_sizes
    open_indices = np.flatnonzero(done < sizes)
    touched = frozenset(int(index) for index in open_indices if doubtful or done[index] > 0)
    rows = int((sizes - done)[open_indices].sum())
    shard_rows = max(1, int(sizes[open_indices].mean()))
    per_task = max(1, min(MAX_READ_TASK_ROWS, rows // READ_TASKS_WANTED) // shard_rows)
    tasks = math.ceil(len(open_indices) / per_task)
    tasks = math.ceil(len(open_indices) / math.ceil(len(open_indices) / tasks))  # as many as come out of even runs
    source = _Shards(job, lambda: (plan.shard(int(index)) for index in open_indices), tasks, touched, board)

    args = engine_args(spec, facts(locate(spec.model, weights=False)))
    columns = spec.input.columns
    images = bool(columns.images or columns.messages or columns.document)
    slots = int(args["max_num_seqs"])
    concurrency = open_shards(slots, shard_rows, len(open_indices), spec.replicas.max, images=images)
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
        _Worker,
        fn_constructor_args=(job, board, touched, hold),
        batch_size=1,
        batch_format="pyarrow",
        compute=pool,
        **_placement(spec.replicas.gpus, spec.replicas.cpus),
    )


def _as_job_error(error: BaseException, snapshot: Snapshot) -> JobError:
    """What broke: the error that a task or a replica met, which Ray hands on as text only, else Ray's own."""
    if snapshot.failure is not None:
        return snapshot.failure
    if snapshot.engine_error is not None:
        return EngineStartError(snapshot.engine_error)
    first = str(error).strip().splitlines() or [type(error).__name__]
    return ClusterError(f"Ray stopped the job: {type(error).__name__}: {first[-1]}")


class _signals:
    """Turns SIGINT and SIGTERM into an event; a second SIGINT ends at once."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: Any) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            sys.exit(3)
        self._stop.set()
