"""An HTTP proxy in front of an object store that does to it what networks and clouds do."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

Kind = Literal["slow_down", "internal", "cut_put", "lost_answer", "late_list", "expired", "no_bucket"]
ERRORS: dict[str, tuple[int, str]] = {
    "slow_down": (503, "SlowDown"),
    "internal": (500, "InternalError"),
    "expired": (403, "ExpiredToken"),
    "no_bucket": (404, "NoSuchBucket"),
}
PUT_ONLY = frozenset({"cut_put", "lost_answer"})
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"})
STOPPED = struct.pack("ii", 1, 0)  # SO_LINGER that resets the connection


@dataclass(slots=True)
class Fault:
    """A kind of failure.

    Attributes:
        kind: Kind of failure: an error answer, a PUT cut in its middle, a PUT whose answer is lost, or a listing as
            it was at the request before.
        chance: Share of the matching requests that it strikes, 0 to 1.
        until: End by the monotonic clock (seconds).
    """

    kind: Kind
    chance: float = 1.0
    until: float = float("inf")


@dataclass
class FaultProxy:
    """A proxy on loopback.

    Args:
        upstream: `host:port` of the store.
        seed: Seed of the draws that decide which request is struck.
    """

    upstream: str
    seed: int = 0
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._faults: list[Fault] = []
        self._chance = random.Random(self.seed)
        self._lock = threading.Lock()
        self._listings: dict[str, tuple[int, list[tuple[str, str]], bytes]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        """Address for AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, kind: Kind, chance: float = 1.0, seconds: float = float("inf")) -> None:
        """Let a failure strike from now on.

        Args:
            kind: Kind of failure.
            chance: Share of the matching requests, 0 to 1.
            seconds: Duration in seconds.
        """
        with self._lock:
            self._faults.append(Fault(kind, chance, time.monotonic() + seconds))

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._faults.clear()

    def _fault(self, method: str, path: str) -> str | None:
        listing = method == "GET" and "list-type=2" in path
        with self._lock:
            for fault in self._faults:
                if (fault.kind in PUT_ONLY and method != "PUT") or (fault.kind == "late_list" and not listing):
                    continue
                if fault.kind == "late_list" and path not in self._listings:
                    continue
                if time.monotonic() < fault.until and self._chance.random() < fault.chance:
                    self.injected[fault.kind] += 1
                    return fault.kind
        return None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy._fault(self.command, self.path)
                if fault in ERRORS:
                    status, code = ERRORS[fault]
                    answer = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                    self._answer(status, [("Content-Type", "application/xml")], answer)
                elif fault == "cut_put":
                    self._forward(body[: len(body) // 2], whole=False)
                    self._hang_up()
                elif fault == "late_list":
                    self._answer(*proxy._listings[self.path])
                else:
                    answered = self._forward(body)
                    if self.command == "GET" and "list-type=2" in self.path and answered[0] == 200:
                        proxy._listings[self.path] = answered
                    if fault == "lost_answer":
                        self._hang_up()
                    else:
                        self._answer(*answered)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

            def _forward(self, body: bytes, *, whole: bool = True) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(proxy.upstream, timeout=60)
                try:
                    connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        if name.lower() != "expect":
                            connection.putheader(name, value)
                    connection.endheaders(body)
                    if not whole:
                        return 0, [], b""
                    response = connection.getresponse()
                    headers = [item for item in response.getheaders() if item[0].lower() not in HOP_BY_HOP]
                    if self.command == "HEAD":
                        headers.append(("Content-Length", response.getheader("Content-Length") or "0"))
                    return response.status, headers, response.read()
                finally:
                    connection.close()

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(body)))
                elif not any(name == "Content-Length" for name, _ in headers):
                    self.send_header("Content-Length", "0")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def _hang_up(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, STOPPED)
                self.close_connection = True

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    return  # the client went away, as clients that are killed do

            def log_message(self, *_: Any) -> None:
                return

        return Handler
