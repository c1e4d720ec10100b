"""The caller's side of a sandbox: requests go to another process, and come back as replies or as one typed error.

A request that takes too long, needs too much memory or ends the process harms no other request. The kernel ends the
process at its limit, and the next request gets a new process. A process killed from outside is not its request's fault:
the request is tried again in a new process, up to KILLS times.
"""

import functools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from magbatch.errors import (
    ClusterError,
    ErrorCode,
    RowError,
    SandboxDiedError,
    SandboxError,
    SandboxMemoryError,
    SandboxTimeoutError,
)

DEATHS = 2  # processes that one request may end; the first end may be a coincidence
KILLS = 5  # processes killed from outside during one request, or during one start
START_TIMEOUT_S = 120.0  # time limit of a process' start, for a cold disk and a busy node
GRACE_S = 5.0  # time that the caller waits after the kernel's alarm
# Environment variables that the process gets. None is a credential.
ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "PYTHONUTF8"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MALLOC_ARENA_MAX"),
)
Replies = Iterator[tuple[dict[str, Any], bytes | None]]
"""Replies to one request in the process, in order: the head (JSON values by name) and the body of each."""
Handler = Callable[[dict[str, Any], bytes], Replies]
"""Function of a request's head and body that runs in the process."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of a handler to a request.

    Attributes:
        head: JSON values by name.
        body: Bytes of any length; None if the reply has none.
    """

    head: dict[str, Any]
    body: bytes | None


class _GoneError(Exception):
    """The end of a sandbox's process.

    Args:
        code: Exit code; negative for the number of a signal.
    """

    def __init__(self, code: int) -> None:
        super().__init__(signal.Signals(-code).name if code < 0 else f"exit code {code}")
        # Its memory is bounded, so SIGKILL comes from a person, a platform, or a node without memory.
        self.from_outside = code == -signal.SIGKILL


class Sandbox:
    """A process that handles requests, one at a time. It is started at first use.

    Args:
        handler: Name of the factory, `package.module:factory`. In the process, `factory(setup)` returns a function.
            It takes a request's head and body and yields head and body of each reply. A RowError that it raises is
            raised in the caller.
        setup: JSON values for the factory. Imports and the factory run before the limits apply.
        timeout_s: Time limit of one request, in seconds.
        memory_mb: Memory limit of requests, in megabytes, in addition to the memory that the factory uses.
    """

    def __init__(self, handler: str, setup: Mapping[str, Any], *, timeout_s: float, memory_mb: int) -> None:
        self._handler, self._setup = handler, json.dumps(setup).encode()
        self._timeout_s, self._memory_mb = timeout_s, memory_mb
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._end: Callable[[], object] | None = None

    def __call__(self, head: Mapping[str, Any], body: bytes = b"", *, timeout_s: float | None = None) -> list[Reply]:
        """Handle one request.

        Args:
            head: JSON values by name.
            body: Bytes of any length.
            timeout_s: Time limit of this request, in seconds; None takes the sandbox's own limit.

        Returns:
            The handler's replies, in order.

        Raises:
            RowError: The handler raised this error.
            SandboxError: The request took too long, needed too much memory, ended the process, or failed otherwise.
            ClusterError: The process cannot be started on this machine.
        """
        limit_s = timeout_s if timeout_s is not None else self._timeout_s
        with self._lock:
            deaths = kills = 0
            while True:
                if self._connection is None:
                    self._start()
                try:
                    return self._ask(head, body, limit_s)
                except _GoneError as error:
                    self.close()
                    deaths += not error.from_outside
                    kills += error.from_outside
                    if deaths == DEATHS or kills == KILLS:
                        raise SandboxDiedError(f"the request ended {deaths + kills} processes ({error})") from error

    def start(self) -> None:
        """Start the process now, unless it is running.

        Raises:
            ClusterError: The process cannot be started on this machine.
        """
        with self._lock:
            if self._connection is None:
                self._start()

    @property
    def pid(self) -> int | None:
        """Process id; None before the first request, and after a request that ended the process."""
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        """End the process. It also ends when the sandbox is garbage-collected."""
        if self._end is not None:
            self._end()
        self._process = self._connection = self._end = None

    def _ask(self, head: Mapping[str, Any], body: bytes, limit_s: float) -> list[Reply]:
        connection = self._connection
        assert connection is not None
        replies: list[Reply] = []
        deadline = time.monotonic() + limit_s + GRACE_S
        try:
            connection.send_bytes(json.dumps({"head": head, "timeout_s": limit_s, "body": bool(body)}).encode())
            if body:
                connection.send_bytes(body)
            while True:
                if not connection.poll(max(0.0, deadline - time.monotonic())):
                    raise self._late(limit_s)
                answer = json.loads(connection.recv_bytes())
                if "error" in answer:
                    raise _raised(answer, self._memory_mb)
                if "head" in answer:
                    replies.append(Reply(answer["head"], connection.recv_bytes() if answer["body"] else None))
                if not answer["more"]:
                    return replies
        except (OSError, EOFError, ValueError) as error:  # ValueError: the process is broken and sends no JSON
            assert self._process is not None
            if isinstance(error, ValueError):
                self._process.kill()
                self._process.wait()
                raise _GoneError(-signal.SIGABRT) from error
            code = self._process.wait()
            if code == -signal.SIGALRM:
                raise self._late(limit_s) from error
            raise _GoneError(code) from error

    def _late(self, limit_s: float) -> SandboxTimeoutError:
        self.close()
        return SandboxTimeoutError(f"not done within {limit_s:g} s")

    def _start(self) -> None:
        """Start the process. If it is killed from outside during the start, start it again, up to KILLS times."""
        code: int | None = None
        for _ in range(KILLS):
            try:
                code = self._start_once()
            except OSError as error:  # no process, memory or file descriptor left
                raise ClusterError(
                    f"sandbox {self._handler}: the process cannot be started on this machine: {error}"
                ) from error
            if code is None:
                return
            if code != -signal.SIGKILL:
                break
        raise ClusterError(
            f"sandbox {self._handler}: the process ended with {code} during its start; see the log of this node"
        )

    def _start_once(self) -> int | None:
        """Start the process once; return its exit code if it ends before it is ready, else None."""
        ours, theirs = socket.socketpair()
        command = [
            sys.executable,
            "-P",  # no imports from the working directory
            *("-m", "magbatch.sandbox.process"),
            *(str(theirs.fileno()), self._handler, str(self._memory_mb)),
        ]
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            # Own session: Ctrl-C must reach only the caller. The process ends when its caller does.
            self._process = (
                _spawner()
                .submit(
                    subprocess.Popen,
                    command,
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
                .result()
            )
            undo.pop_all()
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, self._process, self._connection)
        try:
            self._connection.send_bytes(self._setup)  # sent by the pipe, because the length of an argument is limited
            ready = self._connection.poll(START_TIMEOUT_S) and bool(self._connection.recv_bytes())
        except (OSError, EOFError):
            ready = False
        if ready:
            return None
        process = self._process
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)  # the process' own exit code says more than the code after a kill
        self.close()
        return process.returncode


class Sandboxes:
    """A pool of sandboxes: a request goes to a free sandbox, and waits if there is none.

    A sandbox whose process ended gets a new process in the background, and is free again after that. Requests go to the
    other sandboxes in the meantime.

    Args:
        count: Number of sandboxes; each process is started at first use.
        handler: Name of the factory; this and all further arguments are those of `Sandbox`.
    """

    def __init__(
        self, count: int, handler: str, setup: Mapping[str, Any], *, timeout_s: float, memory_mb: int
    ) -> None:  # fmt: skip
        self._free = queue.LifoQueue[Sandbox]()  # last in, first out: the process used last is warm
        for _ in range(count):
            self._free.put(Sandbox(handler, setup, timeout_s=timeout_s, memory_mb=memory_mb))

    def __call__(self, head: Mapping[str, Any], body: bytes = b"", *, timeout_s: float | None = None) -> list[Reply]:
        """Handle one request; see `Sandbox.__call__`. The wait for a free sandbox does not count as its time."""
        sandbox = self._free.get()
        try:
            return sandbox(head, body, timeout_s=timeout_s)
        finally:
            if sandbox.pid is None:
                threading.Thread(target=self._renew, args=(sandbox,), name="sandbox", daemon=True).start()
            else:
                self._free.put(sandbox)

    def _renew(self, sandbox: Sandbox) -> None:
        try:
            # ClusterError: the next request tries again and raises. RuntimeError: this process is shutting down.
            with suppress(ClusterError, RuntimeError):
                sandbox.start()
        finally:
            self._free.put(sandbox)

    def close(self) -> None:
        """End the free processes. Busy ones end when they are garbage-collected."""
        with suppress(queue.Empty):
            while True:
                self._free.get_nowait().close()


@functools.cache
def _spawner() -> ThreadPoolExecutor:
    """The one thread that starts processes. To the kernel, a child's parent is the thread that started it."""
    return ThreadPoolExecutor(1, thread_name_prefix="sandbox-spawner")


os.register_at_fork(after_in_child=_spawner.cache_clear)  # a fork does not copy the thread


def _raised(answer: dict[str, Any], memory_mb: int) -> Exception:
    if answer["error"] == "row":
        return RowError(ErrorCode(answer["code"]), answer["message"])
    if answer["error"] == "memory":
        return SandboxMemoryError(f"the request needs more than {memory_mb} MB of memory")
    return SandboxError(answer["message"])


def _environment() -> dict[str, str]:
    # A Ray worker finds its packages through sys.path only.
    places = os.pathsep.join(filter(None, sys.path))
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return kept | {"PYTHONPATH": places} | dict.fromkeys(_ONE_THREAD, "1")


def _end(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    process.kill()
    process.wait()
    connection.close()
