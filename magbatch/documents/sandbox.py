"""The renderer: a process of its own, in which a document that is damaged, hostile or endless harms nothing else.

Every document ends here within its time and its memory, as pages or as a `RowError`: the kernel ends the process
at the limit, whatever code it is stuck in. A process that was killed from outside accuses no document: the document
is tried again in a new one, a few times.
"""

import json
import os
import queue
import resource
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any

from magbatch.documents.pages import Want, read_pages
from magbatch.errors import ClusterError, ErrorCode, RowError
from magbatch.rows import Image, Page

DEATHS = 2  # renderers that a document may end
KILLS = 5  # renderers that may be killed from outside while they work on one document, or start
START_TIMEOUT_S = 120.0  # of the process: a cold disk, a busy node
GRACE_S = 5.0  # after the kernel's own alarm
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class _DeadError(Exception):
    """The process is gone.

    Args:
        code: Its exit code; a signal's number is negative.
    """

    def __init__(self, code: int) -> None:
        super().__init__(signal.Signals(-code).name if code < 0 else f"exit code {code}")
        # Its memory is bounded: what kills it is a person, a platform, or a node without memory.
        self.from_outside = code == -signal.SIGKILL


class Sandbox:
    """Renders documents, one at a time, in a process that is started when it is needed.

    Args:
        timeout_s: Seconds that one document may take.
        memory_mb: Megabytes that it may take.
    """

    def __init__(self, timeout_s: float, memory_mb: int) -> None:
        self._timeout_s, self._memory_mb = timeout_s, memory_mb
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._end: Callable[[], object] | None = None

    def __call__(self, data: bytes, want: Want) -> tuple[int, list[Page]]:
        """How many pages a document has, and those that are wanted.

        Raises:
            RowError: Why there are none.
            ClusterError: The process cannot be started here.
        """
        with self._lock:
            deaths = kills = 0
            while True:
                if self._connection is None:
                    self._start()
                try:
                    return self._ask(data, want)
                except _DeadError as error:
                    self.close()
                    deaths += not error.from_outside
                    kills += error.from_outside
                    if deaths == DEATHS or kills == KILLS:
                        raise RowError(
                            ErrorCode.DOCUMENT_UNREADABLE,
                            f"it ended {deaths + kills} renderers ({error}): damaged, or above "
                            "limits.document_memory_mb",
                        ) from error

    @property
    def pid(self) -> int | None:
        """The process; None before the first document."""
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        """End the process, as happens by itself when nobody holds the sandbox any more."""
        if self._end is not None:
            self._end()
        self._process = self._connection = self._end = None

    def _ask(self, data: bytes, want: Want) -> tuple[int, list[Page]]:
        connection = self._connection
        assert connection is not None
        pages: list[Page] = []
        try:
            connection.send_bytes(json.dumps(want.to_dict()).encode())
            connection.send_bytes(data)
            while True:
                if not connection.poll(self._timeout_s + GRACE_S):
                    raise self._late()
                reply = json.loads(connection.recv_bytes())
                if "code" in reply:
                    raise RowError(ErrorCode(reply["code"]), reply["message"])
                if "total" in reply:
                    return reply["total"], pages
                size = reply["size"]
                image = Image(size[0], size[1], connection.recv_bytes()) if size is not None else None
                pages.append(Page(reply["number"], reply["text"], image))
        except (OSError, EOFError) as error:
            assert self._process is not None
            code = self._process.wait()
            if code == -signal.SIGALRM:
                raise self._late() from error
            raise _DeadError(code) from error

    def _late(self) -> RowError:
        self.close()
        return RowError(
            ErrorCode.DOCUMENT_TIMEOUT,
            f"not rendered within limits.document_timeout_s = {self._timeout_s:g}",
        )

    def _start(self) -> None:
        """Start the process; one that is killed meanwhile is started again."""
        code: int | None = None
        for _ in range(KILLS):
            try:
                code = self._start_once()
            except OSError as error:  # no process, memory or file descriptor left
                raise ClusterError(f"the process that renders documents cannot be started here: {error}") from error
            if code is None:
                return
            if code != -signal.SIGKILL:
                break
        raise ClusterError(
            f"the process that renders documents does not start on this node (it ended with {code}); its log says why"
        )

    def _start_once(self) -> int | None:
        """The code with which it ended before it was ready; None where it is."""
        ours, theirs = socket.socketpair()
        # A Ray worker's packages are where sys.path says, and nowhere else.
        places = os.pathsep.join(filter(None, sys.path))
        environment = os.environ | {"PYTHONPATH": places} | dict.fromkeys(_THREADS, "1")
        command = [
            sys.executable,
            "-P",  # the working directory is no place for its imports
            "-m",
            "magbatch.documents.sandbox",
            str(theirs.fileno()),
            str(self._timeout_s),
            str(self._memory_mb),
        ]
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            # A session of its own: Ctrl-C is for who asked, whose end is this process' end too.
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            undo.pop_all()
        self._connection = Connection(ours.detach())
        self._end = weakref.finalize(self, _end, self._process, self._connection)
        try:
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
    """Some of them: a document goes to one that is free, and waits where none is.

    Args:
        count: How many; each is started when it is needed.
        timeout_s: Seconds that one document may take.
        memory_mb: Megabytes that it may take.
    """

    def __init__(self, count: int, timeout_s: float, memory_mb: int) -> None:
        self._free = queue.LifoQueue[Sandbox]()  # the last one used is the one that is warm
        for _ in range(count):
            self._free.put(Sandbox(timeout_s, memory_mb))

    def __call__(self, data: bytes, want: Want) -> tuple[int, list[Page]]:
        """See `Sandbox`."""
        sandbox = self._free.get()
        try:
            return sandbox(data, want)
        finally:
            self._free.put(sandbox)


def _end(process: "subprocess.Popen[bytes]", connection: Connection) -> None:
    process.kill()
    process.wait()
    connection.close()


def main(arguments: list[str]) -> None:
    """The process: documents in, pages out, until the other end is closed."""
    import cv2
    import pypdfium2  # noqa: F401 - loaded before the memory is bounded

    cv2.setNumThreads(1)
    connection = Connection(int(arguments[0]))
    timeout_s, memory_mb = float(arguments[1]), int(arguments[2])
    in_use = _address_space()
    if in_use is not None:
        bound = in_use + memory_mb * 2**20
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (bound if hard < 0 else min(bound, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send_bytes(b"ready")
    with suppress(EOFError, OSError):  # who asked is gone
        while True:
            want = Want.from_dict(json.loads(connection.recv_bytes()))
            signal.setitimer(signal.ITIMER_REAL, timeout_s)  # unhandled on purpose: the kernel needs no Python
            for reply, pixels in _replies(connection.recv_bytes(), want, memory_mb):
                connection.send_bytes(json.dumps(reply).encode())
                if pixels is not None:
                    connection.send_bytes(pixels)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _replies(data: bytes, want: Want, memory_mb: int) -> Iterator[tuple[dict[str, Any], bytes | None]]:
    code, message = ErrorCode.DOCUMENT_TOO_LARGE, f"it needs more than limits.document_memory_mb = {memory_mb}"
    try:
        total, pages = read_pages(data, want)
        for page in pages:
            image = page.image
            size = [image.width, image.height] if image is not None else None
            yield {"number": page.number, "text": page.text, "size": size}, image.packed if image is not None else None
        yield {"total": total}, None
        return
    except RowError as error:
        code, message = error.code, error.message
    except MemoryError:
        pass
    except Exception as error:  # noqa: BLE001 - a document's boundary: whatever a file makes a decoder raise
        code, message = ErrorCode.DOCUMENT_UNREADABLE, f"{type(error).__name__}: {error}"
    yield {"code": str(code), "message": message}, None


def _address_space() -> int | None:
    """Bytes that this process has mapped; None where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return None


if __name__ == "__main__":
    main(sys.argv[1:])
