"""Handler that the tests run in sandboxes; a word of the request says what to do."""

import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from magbatch.errors import ErrorCode, RowError

Replies = Iterator[tuple[dict[str, Any], bytes | None]]


def handler(setup: dict[str, Any]) -> Callable[[dict[str, Any], bytes], Replies]:
    def act(head: dict[str, Any], body: bytes) -> Replies:
        word = head["do"]
        if word == "echo":
            yield {"said": head.get("say"), "setup": setup}, body or None
        elif word == "pid":
            yield {"pid": os.getpid()}, None
        elif word == "count":
            for number in range(head["to"]):
                yield {"number": number}, str(number).encode()
        elif word == "refuse":
            raise RowError(ErrorCode.ROW_UNREADABLE, "not this one")
        elif word == "sleep":
            time.sleep(60)
        elif word == "spin":
            yield {"sum": sum(range(10**12))}, None
        elif word == "allocate":
            yield {"bytes": len(bytes(head["bytes"]))}, None
        elif word == "defect":
            raise ZeroDivisionError("a defect")
        elif word == "die":
            os.abort()
        elif word == "environment":
            yield dict(os.environ), None
        elif word == "read":
            yield {"read": len(_tried(lambda: Path(head["path"]).read_bytes()))}, None
        elif word == "write":
            Path(head["path"]).write_bytes(b"x" * 10)
        elif word == "threads":
            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            yield {"done": True}, None
        elif word == "fork":
            if os.fork() == 0:
                os._exit(0)
        elif word == "program":
            subprocess.run(["/bin/true"], check=True)
        elif word == "rights":
            Path(head["path"]).chmod(0o777)
        elif word == "times":
            os.utime(head["path"])
        elif word == "attribute":
            os.setxattr(head["path"], "user.x", b"x")
        elif word == "priority":
            os.setpriority(os.PRIO_PROCESS, head["pid"], 19)
        elif word == "limits":
            resource.prlimit(head["pid"], resource.RLIMIT_NOFILE, (10, 10))
        elif word == "kill":
            os.kill(head["pid"], 0)
        elif word == "local":
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(head["path"])
        elif word == "connect":
            socket.create_connection((head["host"], head["port"]), timeout=5).close()
            yield {"connected": True}, None

    return act


def _tried(read: Callable[[], bytes]) -> bytes:
    return read()


def broken(setup: dict[str, Any]) -> None:
    raise RuntimeError("this factory makes nothing")
