"""The cluster of one run: a local Ray that lives as long as the run, or one that is there already.

What answers rows on it is in `supervise`, which imports Ray Data: that takes longer than all else that is imported, and
is done while Ray starts.
"""

import importlib
import logging
import math
import os
import platform
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before ray is imported: under `uv run`, Ray would re-create the uv environment for every worker.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# A replica of several GPUs holds none itself, its placement group does: Ray must not hide them from it.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray Data's own actor arguments make Ray's core print an error for every job (ray issue 53727).
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
# Ray would wait for 30 s, deaf, where SIGTERM comes while it starts: for services that drain, of which there are none.
os.environ.setdefault("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")

import numpy as np
import psutil
import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

import magbatch
from magbatch import guard
from magbatch.capture import STDERR, STDOUT, Captured, captured
from magbatch.errors import (
    ClusterAccessError,
    ClusterError,
    InterruptedJobError,
    JobError,
    StorageError,
    TooManyFailedError,
    one_line,
)
from magbatch.fleet.devices import check_gpus, too_few
from magbatch.fleet.ray_auth import authenticate, own_token
from magbatch.fleet.vital import Vital
from magbatch.ledger.holder import LeaseToken
from magbatch.pipeline.context import JobContext
from magbatch.plan.plan import Plan
from magbatch.replica.board import Snapshot, SnapshotObserver
from magbatch.spec import JobSpec
from magbatch.storage import open_store

DRIVER_LOG = "_magbatch/driver.log"
LINES_SHOWN, LINE_CHARS = 5, 500
_PREFIX = re.compile(r"^(?:\([\w.]+(?: pid=\d+)?(?:, ip=[\d.]+)?\) )+")  # of Ray: `(raylet) `
SHUTDOWN_GRACE_S = 10.0
CONNECT_TIMEOUT_S = 10.0
WORKERS_OF_A_JOB = 6  # the replica, the board, what reads, and three of Ray Data's own


def run_fleet(
    job: JobContext,
    plan: Plan,
    done: "np.ndarray[Any, np.dtype[np.int64]]",
    watch: SnapshotObserver,
    hold: LeaseToken,
    *,
    any_may_have_rows: bool,
    first: bool = True,
    silence: float | None = None,
) -> Snapshot:
    """Answer every open row of a job, once.

    Args:
        job: The job.
        plan: Its plan.
        done: Rows of each shard that the ledger already holds.
        watch: Is shown the state a few times a second.
        hold: The run's lease.
        any_may_have_rows: Replicas of an earlier run may have committed rows after `done` was counted: each shard is
            looked up in the ledger again when its turn comes.
        first: This process has had no fleet yet: a cluster that cannot be reached is a wrong address.
        silence: Seconds without a report after which a replica is ended; None takes them from the spec.

    Returns:
        The last state.

    Raises:
        InterruptedJobError: SIGINT or SIGTERM came; what was finished is committed.
        EngineStartError: No engine started.
        StorageError: The output or the input's storage gave up.
        ClusterAccessError: The cluster of RAY_ADDRESS cannot be used as it is named.
        ClusterError: Ray broke down.
    """
    stop, session = threading.Event(), _Session()
    # What Ray prints of its own accord (retries, lost workers) is in its log files; the progress line says
    # what a user needs. The signals are set twice, since Ray installs handlers of its own when it starts.
    try:
        with (
            captured(STDOUT, STDERR, replay=False) as said,
            _kept(said, job.spec.output.path, session),
            _signals(stop, in_seconds=True),
            _cluster(job.spec, session, first=first) as vital,
            _signals(stop),
        ):
            if not stop.is_set():
                from magbatch.fleet.supervise import supervise

                def watched(snapshot: Snapshot) -> JobError | None:
                    said.bound()
                    return watch(snapshot)

                try:
                    last = supervise(
                        job,
                        plan,
                        done,
                        watched,
                        stop,
                        hold,
                        vital,
                        any_may_have_rows=any_may_have_rows,
                        silence=silence,
                    )
                except JobError as error:
                    if (why := vital.broken()) is not None:  # of which the error is one of many consequences
                        raise ClusterError(why) from error
                    raise
    except SystemExit as end:  # by a handler of Ray's, which has codes of its own; or by a second Ctrl-C
        if not isinstance(end.code, int | None):
            raise
        raise InterruptedJobError(guard.LEFT) from end
    if stop.is_set():  # while Ray started, or ended
        raise InterruptedJobError(guard.LEFT)
    return last


@dataclass(slots=True)
class _Session:
    """Ray's session, once there is one.

    Attributes:
        logs: Folder of its logs on this node, as a message says it; None before Ray has started.
    """

    logs: str | None = None

    def begun(self, found: Any) -> None:
        """Take what `ray.init` returns."""
        folder = found.address_info["session_dir"]
        self.logs = f"{folder}/logs" + (" on each node" if os.environ.get("RAY_ADDRESS") else "")


@contextmanager
def _kept(said: Captured, output: str, session: _Session) -> Iterator[None]:
    """Where a run fails, what was printed in it is kept in the output, its end shown, and where Ray's logs are said."""
    try:
        yield
    except (InterruptedJobError, TooManyFailedError):
        raise
    except Exception as error:
        text = said.text()
        with suppress(StorageError):  # the run fails all the same
            open_store(output, quick=True).write(DRIVER_LOG, text.encode())
        last = _last_lines(text, str(error))
        if last and (isinstance(error, ClusterError) or not isinstance(error, JobError)):  # others speak for themselves
            error.add_note("\n".join([f"What was printed last (more in {output}/{DRIVER_LOG}):", *last]))
        if session.logs is not None:
            error.add_note(f"Ray's logs, of all workers: {session.logs}")
        raise


def _last_lines(text: str, error: str) -> list[str]:
    """The last lines that were printed, without colours, each once, and none that the error says itself."""
    lines = [_PREFIX.sub("", one_line(line, LINE_CHARS)) for line in text.splitlines()]
    once = dict.fromkeys(line for line in reversed(lines) if line and line not in error)
    return list(once)[:LINES_SHOWN][::-1]


def _knock(address: str) -> None:
    """Raises OSError at once where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


@contextmanager
def _importing(module: str) -> Iterator[None]:
    """Import a module meanwhile: Ray takes seconds to start, which are spent waiting."""
    # An error is raised again by who imports it next.
    thread = threading.Thread(target=importlib.import_module, args=(module,), name="imports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextmanager
def _cluster(spec: JobSpec, session: _Session, *, first: bool) -> Iterator[Vital]:
    """The cluster of RAY_ADDRESS, or a local Ray that ends with this block, with all its processes.

    Yields:
        What watches the processes that a local Ray cannot do without.

    Raises:
        ClusterAccessError: The cluster cannot be used, and never could.
        ClusterError: It can no longer be reached, or no local Ray can be started.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise ClusterAccessError(f"RAY_ADDRESS={address}: Ray Client is not supported; give the head node's host:6379")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    environment: dict[str, Any] = {}
    mine = psutil.Process()
    before = set(mine.children(recursive=True))
    vital = Vital(local=not address)
    try:
        if address:
            _knock(address)
            authenticate(address)
            if RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ:  # else `submit` has sent both with the job
                # The package travels, so that the cluster runs the version that the user runs.
                package = str(Path(magbatch.__file__).parent)
                environment = {"py_modules": [package], "env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}
            with _importing("magbatch.fleet.supervise"):
                session.begun(ray.init(address=address, runtime_env=environment or None, **quiet))
        else:
            check_gpus(spec)
            # Replicas must leave a CPU for reading, or nothing would ever reach them: Ray counts, it does not pin.
            cpus = max(os.cpu_count() or 1, math.ceil(spec.replicas.max * spec.replicas.cpus) + 1)
            # A local Ray starts as many processes before it is asked for the first: none that the job would not use.
            os.environ.setdefault("RAY_prestart_worker_first_driver", str(int(cpus <= WORKERS_OF_A_JOB)))
            own_token()
            # Without a runtime environment: Ray would start no worker before its agent for those is up.
            with _importing("magbatch.fleet.supervise"), vital.watched(starting=True):
                session.begun(ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet))
            there = int(ray.cluster_resources().get("GPU", 0))
            if there < spec.replicas.gpus:
                ray.shutdown()
                raise too_few(spec, there)
    except JobError:
        raise
    except Exception as error:  # Ray raises a bare one when a node is slow to start
        if (why := vital.broken()) is not None:
            raise ClusterError(why) from error
        if address and first:
            raise ClusterAccessError(
                f"RAY_ADDRESS={address} cannot be used: {error}; is it the head node's host:6379, and does it run "
                f"Ray {ray.__version__} on Python {platform.python_version()}?"
            ) from error
        where = f"RAY_ADDRESS={address}" if address else "a local Ray"
        raise ClusterError(f"{where} cannot be used: {error}") from error
    try:
        with vital.watched():
            yield vital
    finally:
        started = set(mine.children(recursive=True)) - before
        broken = vital.broken() is not None
        if not broken:  # else it would wait for what is gone
            ray.shutdown()
        # Ray does not wait for its workers, nor they for their engines: none may outlive the command.
        _, left = psutil.wait_procs(started, timeout=0.0 if broken else SHUTDOWN_GRACE_S)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left)


class _signals:
    """Turns what asks the run to end into an event; a second SIGINT ends it at once.

    Args:
        stop: The event.
        in_seconds: Nothing is to be committed: the keeper ends the command if it does not end by itself.
    """

    def __init__(self, stop: threading.Event, *, in_seconds: bool = False) -> None:
        self._stop, self._in_seconds = stop, in_seconds
        self._old: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, guard.STOP):
            self._old[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: Any) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            guard.end_at_once()
        self._stop.set()
        if self._in_seconds:
            guard.explain(guard.LEFT)
