"""The caller's side: requests go to a process of their own, and come back as replies or as one typed error.

A request that is late, needs too much memory or ends the process harms no other request: the kernel ends the process
at its limit, and the next request gets a new one. A process that was killed from outside accuses no request: the
request is tried again in a new process, a few times.
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
from collections.abc import Callable, Mapping
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

DEATHS = 2  # processes that one request may end
KILLS = 5  # processes that may be killed from outside while they work on one request, or start
START_TIMEOUT_S = 120.0  # of the process: a cold disk, a busy node
GRACE_S = 5.0  # after the kernel's own alarm
# What the process is told of its surroundings. No credential is among them.
ENVIRONMENT = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONHOME", "PYTHONUTF8"),
    *("PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MALLOC_ARENA_MAX"),
)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Reply:
    """One thing that a handler gave for a request.

    Attributes:
        head: JSON values by name.
        body: Bytes beside them; None if there are none.
    """

    head: dict[str, Any]
    body: bytes | None


class _GoneError(Exception):
    """The process ended.

    Args:
        code: Exit code; a signal's number is negative.
    """

    def __init__(self, code: int) -> None:
        super().__init__(signal.Signals(-code).name if code < 0 else f"exit code {code}")
        # Its memory is bounded: what kills it is a person, a platform, or a node without memory.
        self.from_outside = code == -signal.SIGKILL


class Sandbox:
    """Handles requests, one at a time, in a process that is started when it is needed.

    Args:
        handler: `package.module:factory`. In the process, `factory(setup)` gives a function of a request's head and
            body that yields the head and body of each reply. What it raises as RowError is raised here.
        setup: JSON values for the factory. Imports and factory run before anything is bounded.
        timeout_s: Seconds that one request may take.
        memory_mb: Megabytes that requests may take beside what the factory left.
    """

    def __init__(self, handler: str, setup: Mapping[str, Any], *, timeout_s: float, memory_mb: int) -> None:
        self._handler, self._setup = handler, json.dumps(setup).encode()
        self._timeout_s, self._memory_mb = timeout_s, memory_mb
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._end: Callable[[], object] | None = None

    def __call__(self, head: Mapping[str, Any], body: bytes = b"", *, timeout_s: float | None = None) -> list[Reply]:
        """The replies to one request.

        Args:
            head: JSON values by name.
            body: Bytes beside them.
            timeout_s: Seconds that this request may take; None takes the sandbox's own.

        Raises:
            RowError: The handler's word on this request.
            SandboxError: The request was late, needed too much memory, ended the process, or met a defect.
            ClusterError: The process cannot be started here.
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
                        raise SandboxDiedError(f"it ended {deaths + kills} processes ({error})") from error

    def start(self) -> None:
        """Start the process now, if there is none.

        Raises:
            ClusterError: It cannot be started here.
        """
        with self._lock:
            if self._connection is None:
                self._start()

    @property
    def pid(self) -> int | None:
        """The process; None before the first request, and after one that has ended it."""
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        """End the process, as happens by itself when nobody holds the sandbox any more."""
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
        except (
            OSError,
            EOFError,
            ValueError,
        ) as error:  # a ValueError: what came is no JSON; the process is not itself
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
        """Start the process; if it is killed meanwhile, start it again."""
        code: int | None = None
        for _ in range(KILLS):
            try:
                code = self._start_once()
            except OSError as error:  # no process, memory or file descriptor left
                raise ClusterError(f"a sandbox ({self._handler}) cannot be started here: {error}") from error
            if code is None:
                return
            if code != -signal.SIGKILL:
                break
        raise ClusterError(
            f"a sandbox ({self._handler}) does not start on this node (it ended with {code}); its log says why"
        )

    def _start_once(self) -> int | None:
        """The code with which it ended before it was ready; None if it is ready."""
        ours, theirs = socket.socketpair()
        command = [
            sys.executable,
            "-P",  # the working directory is no place for its imports
            *("-m", "magbatch.sandbox.process"),
            *(str(theirs.fileno()), self._handler, str(self._memory_mb)),
        ]
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            # A session of its own: Ctrl-C is for the caller, whose end is this process' end too.
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
            self._connection.send_bytes(self._setup)  # of any length, which an argument is not
            ready = self._connection.poll(START_TIMEOUT_S) and bool(self._connection.recv_bytes())
        except (OSError, EOFError):
            ready = False
        if ready:
            return None
        process = self._process
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)  # by itself: its own code says more than that it was ended here
        self.close()
        return process.returncode


class Sandboxes:
    """Several of them: a request goes to one that is free, and waits if none is.

    One whose process a request has ended is not free until it has a new one: no request waits for that while another
    process is free.

    Args:
        count: How many; each is started when it is needed.
        handler: As in `Sandbox`, and so are the arguments after it.
    """

    def __init__(
        self, count: int, handler: str, setup: Mapping[str, Any], *, timeout_s: float, memory_mb: int
    ) -> None:  # fmt: skip
        self._free = queue.LifoQueue[Sandbox]()  # the last one used is the one that is warm
        for _ in range(count):
            self._free.put(Sandbox(handler, setup, timeout_s=timeout_s, memory_mb=memory_mb))

    def __call__(self, head: Mapping[str, Any], body: bytes = b"", *, timeout_s: float | None = None) -> list[Reply]:
        """See `Sandbox.__call__`; waiting for a free one takes nothing of the request's time."""
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
            # The next request tries again, and tells; if this process ends meanwhile, threads refuse work.
            with suppress(ClusterError, RuntimeError):
                sandbox.start()
        finally:
            self._free.put(sandbox)

    def close(self) -> None:
        """End the processes that are free; the others end when nobody holds them."""
        with suppress(queue.Empty):
            while True:
                self._free.get_nowait().close()


@functools.cache
def _spawner() -> ThreadPoolExecutor:
    """The one thread that starts processes: to the kernel, a child's parent is the thread that started it."""
    return ThreadPoolExecutor(1, thread_name_prefix="sandbox-spawner")


os.register_at_fork(after_in_child=_spawner.cache_clear)  # whose thread a fork leaves behind


def _raised(answer: dict[str, Any], memory_mb: int) -> Exception:
    if answer["error"] == "row":
        return RowError(ErrorCode(answer["code"]), answer["message"])
    if answer["error"] == "memory":
        return SandboxMemoryError(f"it needs more than {memory_mb} MB of memory")
    return SandboxError(answer["message"])


def _environment() -> dict[str, str]:
    # A Ray worker's packages are where sys.path says, and nowhere else.
    places = os.pathsep.join(filter(None, sys.path))
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return kept | {"PYTHONPATH": places} | dict.fromkeys(_ONE_THREAD, "1")


def _end(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    process.kill()
    process.wait()
    connection.close()
