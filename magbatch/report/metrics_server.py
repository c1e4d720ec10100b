"""The HTTP server for metrics: any number of slow clients can use only a bounded share of the process.

A connection has a few seconds for its request and its answer together. If too many connections are open, the oldest
one that has not sent its request yet is closed for a new one. So idle connections never keep a scraper out.
"""

import socket
import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client.exposition import ThreadingWSGIServer

ROOM_WAIT_S = 1.0  # time for the thread of a connection that was just closed to end


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    since: float = field(default_factory=monotonic)
    requested: bool = False  # whether the request has arrived
    ended: bool = False

    def end(self) -> None:
        """Wake the thread that reads from the connection or writes to it. That thread then closes it."""
        self.ended = True
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the client has closed the connection already
            return


class Server(ThreadingWSGIServer):
    """WSGI server with one thread for each connection, a limited number of connections, and a limited life of each.

    Attributes:
        max_connections: Connections open at once; a dashboard and a few scrapers need less than ten.
        life_s: Seconds for which a connection may stay open; Prometheus' default scrape timeout is 10 s.
    """

    max_connections = 32
    life_s = 10.0
    request_queue_size = 1024  # connections that the kernel holds until they are accepted

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._open: dict[int, _Connection] = {}  # by file descriptor
        self._room = threading.Condition()
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a new connection in a thread; close it if all open connections are being answered."""
        with self._room:
            if len(self._open) >= self.max_connections:
                idle = next((one for one in self._open.values() if not one.requested), None)  # the first is the oldest
                if idle is not None:
                    idle.end()
                if not self._room.wait_for(lambda: len(self._open) < self.max_connections, ROOM_WAIT_S):
                    super().shutdown_request(request)
                    return
            self._open[request.fileno()] = _Connection(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that has ended."""
        with self._room:
            self._open.pop(request.fileno(), None)
            super().shutdown_request(request)  # under the lock: the next connection may get this descriptor
            self._room.notify_all()

    def service_actions(self) -> None:
        """End connections that have been open for too long. The base class calls this twice a second."""
        super().service_actions()
        now = monotonic()
        with self._room:
            for one in self._open.values():
                if now - one.since > self.life_s:
                    one.end()

    def accepts(self, request: Any) -> bool:
        """Whether a request that has arrived is answered. From then on its connection is not closed for a new one.

        The check is needed because a connection that closed within the headers looks like a complete request.
        """
        with self._room:
            one = self._open[request.fileno()]
            one.requested = not one.ended
            return one.requested

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that has gone: that is not an error of the job."""

    def server_close(self) -> None:
        """Close the port and all connections."""
        super().server_close()
        with self._room:
            for one in self._open.values():
                one.end()


class Handler(WSGIRequestHandler):
    """Handler of one request, which writes no log line."""

    server: Server

    def parse_request(self) -> bool:
        """Read the request; False if it must not be answered."""
        return super().parse_request() and self.server.accepts(self.request)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""
