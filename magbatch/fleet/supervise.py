"""The driver's loop: it watches the fleet of one run, ends replicas that hang, and tells how the run ended.

Ray Data does the work in a thread of its own. The loop never schedules a row.
"""

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from magbatch.errors import ClusterError, EngineStartError, InterruptedJobError, JobError, one_line
from magbatch.fleet.board import BoardState
from magbatch.fleet.dataset import Consumer, OpenShards, answered
from magbatch.fleet.nodes import this_node
from magbatch.fleet.observer import FleetObserver
from magbatch.fleet.placement import PlacementNotice
from magbatch.fleet.pool import Pool
from magbatch.fleet.ray_private import DATA, check
from magbatch.fleet.sharing_client import Share
from magbatch.fleet.vital import Vital
from magbatch.ledger.holder import LeaseToken
from magbatch.pipeline.context import JobContext
from magbatch.replica.board import Snapshot, silence_s
from magbatch.replica.losses import LossReason
from magbatch.spec import JobSpec
from magbatch.versions import versions

MAX_FAILED_STARTS = 3  # replacements in a row that fail to start while no replica is left
MESSAGE_CHARS = 500  # longest line of Ray's output that is shown, in characters


@dataclass(frozen=True, slots=True)
class DriverTiming:
    """Durations of the driver's loop, in seconds.

    Attributes:
        poll_s: Time between two looks at the fleet.
        stop_grace_s: Time for replicas to commit after a stop. A replica takes 25 s at most.
        end_grace_s: Time for Ray Data's threads to end.
    """

    poll_s: float = 0.25
    stop_grace_s: float = 30.0
    end_grace_s: float = 10.0


@contextmanager
def _ray_errors_as_job_errors() -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayError as error:
        raise _as_job_error(error, Snapshot()) from error


@_ray_errors_as_job_errors()
def supervise(
    job: JobContext,
    shards: OpenShards,
    slots: int,
    observer: FleetObserver,
    stop: threading.Event,
    token: LeaseToken,
    vital: Vital,
    *,
    silence: float | None = None,
) -> Snapshot:
    """Answer open rows on the cluster that this process is connected to; see `cluster.run_fleet`.

    Args:
        job: Spec and planned columns of the job.
        shards: Open shards of the job.
        slots: Engine slots of one replica.
        observer: Observer of the run, which may end it.
        stop: Event that the caller sets to make replicas commit finished rows and end.
        token: Token of the run's lease, which each replica checks.
        vital: Watch over the processes of a local Ray.
        silence: Seconds without a report after which a replica is ended; None takes them from the spec.

    Returns:
        The last state of the fleet.

    Raises:
        JobError: The run has ended early; the kind of the error says why.
    """
    check(DATA)
    spec = job.spec
    board = start_board(spec, shards.rows, silence)
    dataset = answered(job, shards, board, token, slots)
    shared = bool(os.environ.get("RAY_ADDRESS"))
    pool = Pool(dataset, spec.replicas, slots / spec.sampling.n, shared=shared)
    share = Share(spec, token.root, pool, board, observer.say) if shared else None
    return Driver(
        board, shards.rows, Consumer(dataset), pool, observer, stop, vital, share, PlacementNotice(spec.replicas)
    ).run()


def start_board(spec: JobSpec, rows: int, silence: float | None = None) -> Any:
    """Start the board of a run.

    Args:
        spec: Spec of the job, for the timeouts of rows and starts.
        rows: Rows that the run is to answer.
        silence: Seconds without a report after which a replica is ended; None takes them from the spec.

    Returns:
        Ray's handle of the board, whose versions are those of this process.
    """
    # The board runs on the driver's node, so that it does not vanish with a spot node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # Ray's annotation of `remote` forgets this strategy.
    remote: Any = ray.remote(num_cpus=0, scheduling_strategy=here)  # type: ignore[call-overload]
    board: Any = remote(BoardState).remote(
        rows,
        spec.replicas.start_timeout_s,
        silence_s(spec.limits.row_timeout_s) if silence is None else silence,
    )
    ray.get(board.differs.remote(this_node(), versions()))
    return board


class Driver:
    """The driver's loop over the execution of one dataset.

    Args:
        board: Ray's handle of the board.
        rows: Rows that the run is to answer.
        consumer: Thread that executes the dataset.
        pool: Actor pool of the dataset.
        observer: Observer of the run, which may end it.
        stop: Event that the caller sets to end the run.
        vital: Watch over the processes of a local Ray.
        share: The job's side of the sharing of the cluster; None on a local Ray.
        notice: Message that tells why replicas have no devices.
        timing: Durations of the loop.
    """

    def __init__(
        self,
        board: Any,
        rows: int,
        consumer: Consumer,
        pool: Pool,
        observer: FleetObserver,
        stop: threading.Event,
        vital: Vital,
        share: Share | None,
        notice: PlacementNotice,
        timing: DriverTiming = DriverTiming(),
    ) -> None:
        self._board, self._rows, self._consumer, self._pool = board, rows, consumer, pool
        self._observer, self._stop, self._vital = observer, stop, vital
        self._share, self._notice, self._timing = share, notice, timing
        self._ends: JobError | None = None
        self._deadline = math.inf

    def run(self) -> Snapshot:
        """Run the execution to its end.

        Returns:
            The last state of the fleet.

        Raises:
            JobError: The run has ended early; the kind of the error says why.
        """
        self._consumer.start()
        try:
            while self._consumer.is_alive() and self._step():
                pass
        finally:
            self._end()
        return self._outcome()

    def _step(self) -> bool:
        """Wait a moment, then look at the fleet once; False when the run has waited long enough for its replicas."""
        self._consumer.join(self._timing.poll_s)
        if (broken := self._vital.broken()) is not None:
            raise ClusterError(broken)
        snapshot: Snapshot = ray.get(self._board.snapshot.remote())
        self._ends = self._ends or self._observer.watch(snapshot)
        if self._ends is not None or self._stop.is_set():
            self._consumer.end()
        self._bound_pool(snapshot)
        for name, actor in snapshot.silent:
            self._end_silent(name, actor)
        _raise_failure(snapshot)
        if self._consumer.is_ending and self._deadline == math.inf:
            self._deadline = time.monotonic() + self._timing.stop_grace_s
            self._board.stop.remote()
        return time.monotonic() <= self._deadline and not (self._consumer.is_ending and snapshot.starting)

    def _bound_pool(self, snapshot: Snapshot) -> None:
        """Bound the pool, and say why replicas wait for devices."""
        cap = self._share.claim(snapshot) if self._share is not None else None
        self._pool.bound(self._rows - snapshot.done.rows, cap)
        if (message := self._notice.check(snapshot, self._pool.waiting(snapshot))) is not None:
            self._observer.say(message)

    def _end_silent(self, name: str, actor: str) -> None:
        """End a replica that does not report. Its event loop hangs, so its own process cannot end it."""
        handle = self._pool.running(actor)
        if handle is None:  # the process is gone, perhaps with its node; its rows are not to blame
            self._board.left.remote(name, LossReason.NODE_GONE)
            return
        ray.get(self._board.froze.remote(name))  # waits, so that the next replica already finds the strikes
        with suppress(ray.exceptions.RayError):  # the replica may just have ended
            ray.kill(handle, no_restart=False)

    def _end(self) -> None:
        if self._share is not None:
            self._share.end()
        broken = self._vital.broken() is not None
        # Ray must not be shut down while threads of Ray Data run: that sometimes ends this process with a
        # segmentation fault (seen with Ray 2.60).
        if self._consumer.is_alive() and not broken:
            self._pool.shutdown()
        self._consumer.join(0.0 if broken else self._timing.end_grace_s)

    def _outcome(self) -> Snapshot:
        last: Snapshot = ray.get(self._board.snapshot.remote())
        self._observer.watch(last)
        if self._ends is not None and last.done.rows < self._rows:
            raise self._ends
        if self._stop.is_set():
            late = time.monotonic() > self._deadline
            raise InterruptedJobError(
                "stopped before every replica had committed its finished rows "
                f"(within {self._timing.stop_grace_s:.0f} s)"
                if late
                else "stopped; every finished row is committed"
            )
        if self._consumer.failure is not None:
            raise _as_job_error(self._consumer.failure, last)
        return last


def _raise_failure(snapshot: Snapshot) -> None:
    """Raise what stops the job: a failure of a task or replica, or engines that do not start."""
    if snapshot.failure is not None:
        raise snapshot.failure
    if snapshot.engine_error is not None:
        given_up = not snapshot.replicas and snapshot.failed_starts >= MAX_FAILED_STARTS
        if snapshot.starting or given_up:
            raise _not_started(snapshot)


def _as_job_error(error: BaseException, snapshot: Snapshot) -> JobError:
    """The cause of an error of Ray: an error that a task or replica gave the board, else the last line of Ray's."""
    if snapshot.failure is not None:
        return snapshot.failure
    if snapshot.engine_error is not None:
        return _not_started(snapshot)
    lines = [one_line(line, MESSAGE_CHARS) for line in str(error).splitlines()]
    said = [line for line in lines if line] or [type(error).__name__]
    return ClusterError(f"Ray stopped the job: {type(error).__name__}: {said[-1]}")


def _not_started(snapshot: Snapshot) -> EngineStartError:
    """The error of a run whose engines do not start: the engine's own message, and the path of its log."""
    error = EngineStartError(snapshot.engine_error)
    error.add_note(f"The engine's {snapshot.failed_home.logs()}")
    return error
