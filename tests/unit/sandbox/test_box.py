"""A request harms only itself: its time and memory are bounded, and it reaches nothing on its node."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from magbatch.errors import (
    ClusterError,
    ErrorCode,
    RowError,
    SandboxDiedError,
    SandboxError,
    SandboxMemoryError,
    SandboxTimeoutError,
)
from magbatch.sandbox import Sandbox, Sandboxes
from magbatch.sandbox.confine import landlock_version

HANDLER = "support.sandbox_handlers:handler"
confined = pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock: a sandbox may open files")
SECRET = "a secret of the node"


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    os.environ["SECRET_OF_THIS_TEST"] = SECRET
    box = Sandbox(HANDLER, {"of": "tests"}, timeout_s=60, memory_mb=300)
    yield box
    box.close()
    del os.environ["SECRET_OF_THIS_TEST"]


def works(box: Sandbox | Sandboxes) -> bool:
    (reply,) = box({"do": "echo", "say": "hello"}, b"body")
    return (reply.head["said"], reply.body) == ("hello", b"body")


def test_a_request_comes_back_with_its_replies_in_order(box: Sandbox) -> None:
    (reply,) = box({"do": "echo", "say": "\ud800 \x00"})
    assert reply.head == {"said": "\ud800 \x00", "setup": {"of": "tests"}}
    assert reply.body is None
    assert [reply.body for reply in box({"do": "count", "to": 3})] == [b"0", b"1", b"2"]
    assert box({"do": "count", "to": 0}) == []


def test_a_body_of_any_size_comes_back_whole(box: Sandbox) -> None:
    body = os.urandom(8 << 20)
    assert box({"do": "echo"}, body)[0].body == body


def test_errors_of_the_handler_are_raised_in_the_caller(box: Sandbox) -> None:
    before = box({"do": "echo"}) and box.pid
    with pytest.raises(RowError) as caught:
        box({"do": "refuse"})
    assert (caught.value.code, caught.value.message) == (ErrorCode.ROW_UNREADABLE, "not this one")
    with pytest.raises(SandboxError, match="ZeroDivisionError: a defect"):
        box({"do": "defect"})
    assert box.pid == before, "neither takes the process along"


@pytest.mark.parametrize("word", ["sleep", "spin"])
def test_a_request_that_takes_too_long_fails(box: Sandbox, word: str) -> None:
    with pytest.raises(SandboxTimeoutError, match=r"not done within 0\.5 s"):
        box({"do": word}, timeout_s=0.5)
    assert works(box)


def test_a_request_that_needs_too_much_memory_fails(box: Sandbox) -> None:
    assert box({"do": "allocate", "bytes": 100 << 20})[0].head == {"bytes": 100 << 20}
    with pytest.raises(SandboxMemoryError, match="more than 300 MB"):
        box({"do": "allocate", "bytes": 400 << 20})
    assert works(box)


def test_a_request_that_ends_its_process_fails(box: Sandbox) -> None:
    with pytest.raises(SandboxDiedError, match="SIGABRT"):
        box({"do": "die"})
    assert works(box)


def test_no_secret_of_the_node_is_in_its_environment(box: Sandbox) -> None:
    found = box({"do": "environment"})[0].head
    assert SECRET not in str(found)
    assert "PYTHONPATH" in found


@confined
def test_files_of_the_node_are_neither_read_nor_written(box: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    with pytest.raises(SandboxError, match="PermissionError"):
        box({"do": "read", "path": str(secret)})
    with pytest.raises(SandboxError, match="PermissionError"):
        box({"do": "read", "path": f"/proc/{os.getpid()}/environ"})
    with pytest.raises(SandboxError, match=r"PermissionError|OSError"):
        box({"do": "write", "path": str(tmp_path / "new")})
    assert not (tmp_path / "new").exists()
    assert box({"do": "read", "path": os.__file__})[0].head["read"], "its own packages are read as before"


@confined
def test_no_server_is_reached(box: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            pass
        with pytest.raises(SandboxError, match=r"PermissionError|OSError"):
            box({"do": "connect", "host": "127.0.0.1", "port": port})


@confined
@pytest.mark.parametrize(
    "word", ["fork", "program", "rights", "times", "attribute", "priority", "limits", "kill", "local"]
)
def test_nothing_outside_the_process_is_reached(box: Sandbox, tmp_path: Path, word: str) -> None:
    path = tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as server:
        if word == "local":
            server.bind(str(path))
            server.listen()
        else:
            path.write_text(SECRET)
        before = path.stat()
        with pytest.raises(SandboxError, match=r"PermissionError|BlockingIOError"):
            box({"do": word, "path": str(path), "pid": os.getpid()})
        assert (path.stat().st_mode, path.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_threads_of_libraries_are_allowed(box: Sandbox) -> None:
    assert box({"do": "threads"})[0].head == {"done": True}


def test_a_process_ends_with_its_caller_whatever_it_works_on() -> None:
    script = (
        "import psutil, sys, threading, time\n"
        "from magbatch.sandbox import Sandbox\n"
        "box = Sandbox('support.sandbox_handlers:handler', {}, timeout_s=600, memory_mb=300)\n"
        "starter = threading.Thread(target=lambda: box({'do': 'echo'}))\n"
        "starter.start(), starter.join()\n"
        "assert box({'do': 'echo'})[0].head['said'] is None, 'it ended with the thread that used it first'\n"
        "threading.Thread(target=lambda: box({'do': 'spin'}), daemon=True).start()\n"
        "time.sleep(0.5)\n"
        "print(box.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    places = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": places}
    ) as caller:
        assert caller.stdout is not None
        busy = psutil.Process(int(caller.stdout.readline()))
        assert busy.is_running()
        caller.kill()
    busy.wait(30)


def test_a_stuck_sandbox_does_not_block_the_pool() -> None:
    boxes = Sandboxes(2, HANDLER, {}, timeout_s=4, memory_mb=300)
    ended: list[str] = []

    def stuck() -> None:
        with pytest.raises(SandboxTimeoutError):
            boxes({"do": "spin"})
        ended.append("stuck")

    def good() -> None:
        assert all(works(boxes) for _ in range(5))
        ended.append("good")

    threads = [threading.Thread(target=stuck), threading.Thread(target=good)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    boxes.close()
    assert ended == ["good", "stuck"]


def test_a_request_goes_to_a_running_process_first() -> None:
    boxes = Sandboxes(2, HANDLER, {}, timeout_s=4, memory_mb=300)
    after: list[int] = []

    def stuck() -> None:
        with pytest.raises(SandboxTimeoutError):
            boxes({"do": "spin"})
        after.append(boxes({"do": "pid"})[0].head["pid"])

    thread = threading.Thread(target=stuck)
    thread.start()
    time.sleep(0.5)  # it has taken the first
    before = boxes({"do": "pid"})[0].head["pid"]
    thread.join()
    boxes.close()
    assert after == [before]


def test_a_handler_that_cannot_be_made_stops_the_job() -> None:
    with pytest.raises(ClusterError, match="during its start"):
        Sandbox("support.sandbox_handlers:broken", {}, timeout_s=5, memory_mb=300)({"do": "echo"})
