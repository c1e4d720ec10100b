"""The HTTP server of a job's numbers: whoever connects, and however slowly, takes a bounded part of the process.

A connection has a few seconds for its request and its answer together. When one more comes than may be open at once,
the oldest that has not sent its request yet is closed for it. So idle connections keep no scraper out.
"""

import socket
import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client.exposition import ThreadingWSGIServer

ROOM_WAIT_S = 1.0  # for the thread of a connection that was just closed to end


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    since: float = field(default_factory=monotonic)
    asked: bool = False  # its request has come
    ended: bool = False

    def end(self) -> None:
        """Wake the thread that reads from it or writes to it; that thread then closes it."""
        self.ended = True
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side has closed it already
            return


class Server(ThreadingWSGIServer):
    """A thread for each connection, of which there are few at once and none for long.

    Attributes:
        max_connections: Connections that are open at once.
        life_s: Seconds that one is open, at most.
    """

    max_connections = 32
    life_s = 10.0
    request_queue_size = 1024  # connections that wait to be taken

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._open: dict[int, _Connection] = {}  # by descriptor
        self._room = threading.Condition()
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a new connection in a thread; close it where all others are being answered."""
        with self._room:
            if len(self._open) >= self.max_connections:
                idle = next((one for one in self._open.values() if not one.asked), None)  # the oldest comes first
                if idle is not None:
                    idle.end()
                if not self._room.wait_for(lambda: len(self._open) < self.max_connections, ROOM_WAIT_S):
                    super().shutdown_request(request)
                    return
            self._open[request.fileno()] = _Connection(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that is over."""
        with self._room:
            self._open.pop(request.fileno(), None)
            super().shutdown_request(request)  # within: the next connection may get this descriptor
            self._room.notify_all()

    def service_actions(self) -> None:
        """End what has been open for too long; called twice a second."""
        super().service_actions()
        now = monotonic()
        with self._room:
            for one in self._open.values():
                if now - one.since > self.life_s:
                    one.end()

    def takes(self, request: Any) -> bool:
        """Whether the request that has come on a connection is answered; the connection then makes room for no other.

        To who reads it, a connection that was closed in the middle of the headers looks like one at their end.
        """
        with self._room:
            one = self._open[request.fileno()]
            one.asked = not one.ended
            return one.asked

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was closed, is no error of the job's."""

    def server_close(self) -> None:
        """Close the port and all connections."""
        super().server_close()
        with self._room:
            for one in self._open.values():
                one.end()


class Handler(WSGIRequestHandler):
    """One request, without a line in any log."""

    server: Server

    def parse_request(self) -> bool:
        """See the base class."""
        return super().parse_request() and self.server.takes(self.request)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
