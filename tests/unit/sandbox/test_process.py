"""The process answers each request in messages that say whether more follow, and ends with its caller."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest


@pytest.fixture
def served() -> Iterator[tuple[Connection, subprocess.Popen[bytes]]]:
    """A connection to a process that is ready, and the process."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "magbatch.sandbox.process", str(theirs.fileno())]
        process = subprocess.Popen(
            [*command, "support.sandbox_handlers:handler", "300"],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    with Connection(ours.detach()) as connection, process:
        connection.send_bytes(b'{"of": "this"}')
        assert connection.recv_bytes() == b"ready"
        yield connection, process
        process.kill()


def ask(connection: Connection, head: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
    """Send a request; the first message of its answer."""
    connection.send_bytes(json.dumps({"head": head, "timeout_s": 30, "body": bool(body)}).encode())
    if body:
        connection.send_bytes(body)
    found: dict[str, Any] = json.loads(connection.recv_bytes())
    return found


def test_each_message_says_whether_more_follow(served: tuple[Connection, subprocess.Popen[bytes]]) -> None:
    connection, process = served
    assert ask(connection, {"do": "echo", "say": "x"}, b"body") == {
        "head": {"said": "x", "setup": {"of": "this"}}, "body": True, "more": False
    }  # fmt: skip
    assert connection.recv_bytes() == b"body"
    assert ask(connection, {"do": "count", "to": 2}) == {"head": {"number": 0}, "body": True, "more": True}
    assert [connection.recv_bytes() for _ in range(3)] == [
        b"0", b'{"head": {"number": 1}, "body": true, "more": false}', b"1"
    ]  # fmt: skip
    assert ask(connection, {"do": "count", "to": 0}) == {"more": False}
    assert ask(connection, {"do": "refuse"}) == {"error": "row", "code": "row_unreadable", "message": "not this one"}
    assert ask(connection, {"do": "defect"}) == {"error": "defect", "message": "ZeroDivisionError: a defect"}
    assert ask(connection, {"do": "allocate", "bytes": 10**9}) == {"error": "memory"}
    connection.close()
    assert process.wait(30) == 0
