"""The process of a sandbox: takes requests and sends replies until the caller closes the connection."""

import importlib
import json
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from magbatch.errors import RowError
from magbatch.sandbox.box import Handler, Replies
from magbatch.sandbox.confine import confine


def main(arguments: list[str]) -> None:
    """Serve one connection. The first message is the handler's setup.

    Args:
        arguments: File descriptor of the connection, handler (`package.module:factory`), memory limit in megabytes.
    """
    caller = os.getppid()
    connection = Connection(int(arguments[0]))
    module, _, factory = arguments[1].partition(":")
    handler: Handler = getattr(importlib.import_module(module), factory)(json.loads(connection.recv_bytes()))
    confine(int(arguments[2]), caller)
    connection.send_bytes(b"ready")
    with suppress(EOFError, OSError):  # the caller has ended
        while True:
            request = json.loads(connection.recv_bytes())
            # The signal has no handler, so that the kernel ends the process even inside native code.
            signal.setitimer(signal.ITIMER_REAL, request["timeout_s"])
            body = connection.recv_bytes() if request["body"] else b""
            for answer, pixels in _answers(handler, request["head"], body):
                connection.send_bytes(json.dumps(answer).encode())
                if pixels is not None:
                    connection.send_bytes(pixels)
            del body
            signal.setitimer(signal.ITIMER_REAL, 0)


def _answers(handler: Handler, head: dict[str, Any], body: bytes) -> Replies:
    """Messages to the caller. Each says whether more follow, so that a single reply is a single message."""
    try:
        last: tuple[dict[str, Any], bytes | None] | None = None
        for reply in handler(head, body):
            if last is not None:
                yield {"head": last[0], "body": last[1] is not None, "more": True}, last[1]
            last = reply
        if last is None:
            yield {"more": False}, None
        else:
            yield {"head": last[0], "body": last[1] is not None, "more": False}, last[1]
        return
    except RowError as error:
        failure = {"error": "row", "code": str(error.code), "message": error.message}
    except MemoryError:
        failure = {"error": "memory"}
    except Exception as error:  # noqa: BLE001 - a request's boundary: third-party code may raise anything
        failure = {"error": "defect", "message": f"{type(error).__name__}: {error}"}
    yield failure, None


if __name__ == "__main__":
    main(sys.argv[1:])
