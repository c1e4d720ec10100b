"""The cluster of one run: the Ray cluster at RAY_ADDRESS, or a local Ray that lives as long as the run.

`supervise` answers rows on the cluster. It imports Ray Data, the slowest import of all, while Ray starts.
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

from magbatch.fleet import ray_settings

os.environ.update(ray_settings.unset(ray_settings.DRIVER))

import numpy as np
import psutil
import ray

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
from magbatch.fleet.observer import FleetObserver
from magbatch.fleet.ray_auth import authenticate, own_token
from magbatch.fleet.ray_private import CORE, check, is_submitted
from magbatch.fleet.vital import Vital
from magbatch.ledger.holder import LeaseToken
from magbatch.ledger.layout import DRIVER_LOG
from magbatch.pipeline.context import JobContext
from magbatch.plan.plan import Plan
from magbatch.replica.board import Snapshot
from magbatch.spec import JobSpec
from magbatch.storage import open_store

LINES_SHOWN, LINE_CHARS = 5, 500
_PREFIX = re.compile(r"^(?:\([\w.]+(?: pid=\d+)?(?:, ip=[\d.]+)?\) )+")  # prefix of Ray's lines, such as `(raylet) `
SHUTDOWN_GRACE_S = 10.0  # time for Ray's processes to end by themselves, before they are killed
CONNECT_TIMEOUT_S = 10.0
WORKERS_OF_A_JOB = 6  # the replica, the board, a reader, and three of Ray Data's own
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def run_fleet(
    job: JobContext,
    plan: Plan,
    done: "np.ndarray[Any, np.dtype[np.int64]]",
    observer: FleetObserver,
    token: LeaseToken,
    *,
    slots: int,
    any_may_have_rows: bool,
    first: bool = True,
    silence: float | None = None,
) -> Snapshot:
    """Answer every open row of a job, once.

    Args:
        job: Spec and planned columns of the job.
        plan: Plan of the job, with all its shards.
        done: int64 array (shards,): rows of each shard that the ledger already holds.
        observer: Observer of the run, which sees the fleet a few times a second and may end the run.
        token: Token of the run's lease; replicas without it may not commit.
        slots: Engine slots of one replica (max_num_seqs).
        any_may_have_rows: Whether replicas of an earlier run may have committed rows after `done` was counted. If so,
            each shard is looked up in the ledger again when its turn comes.
        first: Whether this is the first fleet of this process. An unreachable address is then a wrong setting.
        silence: Seconds without a report after which a replica is ended; None takes them from the spec.

    Returns:
        The last state of the fleet.

    Raises:
        InterruptedJobError: SIGINT or SIGTERM came; finished rows are committed.
        EngineStartError: No engine started.
        StorageError: The storage of the output or the input refused for too long.
        ClusterAccessError: The cluster at RAY_ADDRESS cannot be used.
        ClusterError: Ray broke down.
        SettingsError: The installed Ray lacks a private name that magbatch uses.
    """
    stop, session = threading.Event(), _Session()
    # Ray's own messages (retries, lost workers) stay in its log files; the progress line shows all that a user
    # needs. The signal handlers are set twice, because Ray installs its own when it starts.
    with (
        _interrupted_by(stop),
        captured(STDOUT, STDERR, replay=False) as said,
        _kept(said, job.spec.output.path, session),
        _signals(stop, in_seconds=True),
        _cluster(job.spec, session, first=first) as vital,
        _signals(stop),
    ):
        if not stop.is_set():
            from magbatch.fleet.dataset import OpenShards
            from magbatch.fleet.supervise import supervise

            shards = OpenShards.of(plan, done, any_may_have_rows=any_may_have_rows)
            with _cause_first(vital):
                last = supervise(job, shards, slots, _Bounded(observer, said), stop, token, vital, silence=silence)
    return last


@contextmanager
def _interrupted_by(stop: threading.Event) -> Iterator[None]:
    """Raise InterruptedJobError if a signal ends the block, or came while it ran.

    Args:
        stop: Event that a signal sets, also while Ray starts or ends.
    """
    try:
        yield
    except SystemExit as end:  # raised by a handler of Ray's, with Ray's own exit codes, or by a second Ctrl-C
        if not isinstance(end.code, int | None):
            raise
        raise InterruptedJobError(guard.LEFT) from end
    if stop.is_set():
        raise InterruptedJobError(guard.LEFT)


@contextmanager
def _cause_first(vital: Vital) -> Iterator[None]:
    """Raise the end of a process of Ray's instead of one of the many errors that follow it."""
    try:
        yield
    except JobError as error:
        if (broken := vital.broken()) is not None:
            raise ClusterError(broken) from error
        raise


class _Bounded:
    """Observer that also cuts the captured output to its limit at each snapshot.

    Args:
        observer: Observer that gets each snapshot and message.
        said: The captured output of this process.
    """

    def __init__(self, observer: FleetObserver, said: Captured) -> None:
        self._observer, self._said = observer, said

    def watch(self, snapshot: Snapshot) -> JobError | None:
        """Cut the captured output, then pass the snapshot on; see `FleetObserver.watch`."""
        self._said.bound()
        return self._observer.watch(snapshot)

    def say(self, message: str) -> None:
        """Pass a message on; see `FleetObserver.say`."""
        self._observer.say(message)


@dataclass(slots=True)
class _Session:
    """Session of Ray, once it has started.

    Attributes:
        logs: Folder of Ray's logs on this node, worded for a message; None before Ray has started.
    """

    logs: str | None = None

    def begun(self, found: Any) -> None:
        """Take what `ray.init` returns."""
        folder = found.address_info["session_dir"]
        self.logs = f"{folder}/logs" + (" on each node" if os.environ.get("RAY_ADDRESS") else "")


@contextmanager
def _kept(said: Captured, output: str, session: _Session) -> Iterator[None]:
    """If the run fails, save the captured text in the output, and add its last lines and Ray's logs to the error."""
    try:
        yield
    except (InterruptedJobError, TooManyFailedError):
        raise
    except Exception as error:
        text = said.text()
        with suppress(StorageError):  # the run fails all the same
            open_store(output, quick=True).write(DRIVER_LOG, text.encode())
        last = _last_lines(text, str(error))
        # Other errors of a job are clear without Ray's messages.
        if last and (isinstance(error, ClusterError) or not isinstance(error, JobError)):
            error.add_note("\n".join([f"What was printed last (more in {output}/{DRIVER_LOG}):", *last]))
        if session.logs is not None:
            error.add_note(f"Ray's logs, of all workers: {session.logs}")
        raise


def _last_lines(text: str, error: str) -> list[str]:
    """The last LINES_SHOWN different lines of a text, without colours and without lines that the error already has."""
    lines = [_PREFIX.sub("", one_line(line, LINE_CHARS)) for line in text.splitlines()]
    once = dict.fromkeys(line for line in reversed(lines) if line and line not in error)
    return list(once)[:LINES_SHOWN][::-1]


def _knock(address: str) -> None:
    """Raise OSError at once if nothing listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()


@contextmanager
def _importing(module: str) -> Iterator[None]:
    """Import a module in a thread: this process only waits during the seconds in which Ray starts."""
    # An error is raised again by the next import of the module.
    thread = threading.Thread(target=importlib.import_module, args=(module,), name="imports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextmanager
def _cluster(spec: JobSpec, session: _Session, *, first: bool) -> Iterator[Vital]:
    """The cluster at RAY_ADDRESS, or a local Ray that ends with this block, with all its processes.

    Yields:
        The watch over the processes that a local Ray cannot do without.

    Raises:
        ClusterAccessError: The cluster cannot be used, and this process never has used it.
        ClusterError: The cluster can no longer be reached, or no local Ray can be started.
        SettingsError: The installed Ray lacks a private name that magbatch uses.
    """
    check(CORE)
    address = os.environ.get("RAY_ADDRESS")
    if address and address.startswith("ray://"):
        raise ClusterAccessError(f"RAY_ADDRESS={address}: Ray Client is not supported; give the head node's host:6379")
    mine = psutil.Process()
    before = set(mine.children(recursive=True))
    vital = Vital(local=not address)
    try:
        if address:
            _connect(address, session)
        else:
            _start_local(spec, session, vital)
    except JobError:
        raise
    except Exception as error:  # Ray raises a bare Exception if a node is slow to start
        raise _unusable(address, vital, error, first=first) from error
    try:
        with vital.watched():
            yield vital
    finally:
        started = set(mine.children(recursive=True)) - before
        broken = vital.broken() is not None
        if not broken:  # otherwise it would wait for processes that are gone
            ray.shutdown()
        # Ray does not wait for its workers, nor workers for their engines: none may outlive the command.
        _, left = psutil.wait_procs(started, timeout=0.0 if broken else SHUTDOWN_GRACE_S)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left)


def _connect(address: str, session: _Session) -> None:
    """Connect to a cluster; this package travels with the job, so that the cluster runs the user's version."""
    _knock(address)
    authenticate(address)
    environment: dict[str, Any] | None = None
    if not is_submitted():  # `submit` sends the package and the variables with the job
        package = str(Path(magbatch.__file__).parent)
        environment = {"py_modules": [package], "env_vars": ray_settings.GPUS_VISIBLE}
    with _importing("magbatch.fleet.supervise"):
        session.begun(ray.init(address=address, runtime_env=environment, **_QUIET))


def _start_local(spec: JobSpec, session: _Session, vital: Vital) -> None:
    """Start a Ray on this machine.

    Raises:
        SpecError: The machine has too few GPUs for one replica.
    """
    check_gpus(spec)
    # Replicas must leave a CPU for reading, or they would get no rows: Ray counts CPUs, it does not pin.
    cpus = max(os.cpu_count() or 1, math.ceil(spec.replicas.max * spec.replicas.cpus) + 1)
    # A local Ray would start a worker for each CPU in advance, so it gets no more CPUs than the job uses.
    os.environ.setdefault("RAY_prestart_worker_first_driver", str(int(cpus <= WORKERS_OF_A_JOB)))
    own_token()
    # No runtime environment: with one, Ray starts no worker before its agent for environments is up.
    with _importing("magbatch.fleet.supervise"), vital.watched(starting=True):
        session.begun(ray.init(address="local", num_cpus=cpus, include_dashboard=False, **_QUIET))
    there = int(ray.cluster_resources().get("GPU", 0))
    if there < spec.replicas.gpus:
        ray.shutdown()
        raise too_few(spec, there)


def _unusable(address: str | None, vital: Vital, error: Exception, *, first: bool) -> JobError:
    """The error of a cluster that cannot be used, or of a local Ray that does not start."""
    if (broken := vital.broken()) is not None:
        return ClusterError(broken)
    if address and first:
        return ClusterAccessError(
            f"RAY_ADDRESS={address} cannot be used: {error}; is it the head node's host:6379, and does it run "
            f"Ray {ray.__version__} on Python {platform.python_version()}?"
        )
    where = f"RAY_ADDRESS={address}" if address else "a local Ray"
    return ClusterError(f"{where} cannot be used: {error}")


class _signals:
    """Handler that turns SIGINT and SIGTERM into an event; a second SIGINT ends the process at once.

    Args:
        stop: Event that the first signal sets.
        in_seconds: Whether nothing has to be committed, so the keeper may end a command that does not end by itself.
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
