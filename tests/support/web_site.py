"""A web site with pages that redirect, fail, drip, compress or break off."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from magbatch.documents.web import FETCH_TRIES


class Site(BaseHTTPRequestHandler):
    """Pages of the site; any path that is not named here has the content `content`.

    Attributes:
        seen: Number of requests for each path, of all servers.
        hosts: `Host` header of each request.
        encoded: Content-Encoding and body of the pages `/encoded?NAME`.
    """

    seen: ClassVar[Counter[str]] = Counter()
    hosts: ClassVar[list[str]] = []
    encoded: ClassVar[dict[str, tuple[str, bytes]]] = {}

    def do_GET(self) -> None:
        Site.seen[self.path] += 1
        Site.hosts.append(self.headers["Host"])
        path, _, target = self.path.partition("?")
        status, headers, body = 200, dict[str, str](), b"content"
        if path == "/to":
            status, headers, body = 302, {"Location": target}, b""
        elif (path == "/busy" and Site.seen[self.path] < FETCH_TRIES) or path == "/always-busy":
            status, body = 503, b""
        elif path == "/encoded":
            headers["Content-Encoding"], body = Site.encoded[target]
        elif path == "/part":
            status = 206
        elif path == "/short":
            headers["Content-Length"] = "1000"
        elif path == "/half-a-second":
            time.sleep(0.5)
        elif path == "/gone":
            status, body = 404, b""
        elif path == "/drop" and Site.seen[self.path] < FETCH_TRIES:
            self.connection.close()
            return
        elif path == "/slow-header":
            try:
                for _ in range(1000):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def two_sites() -> Iterator[tuple[str, str]]:
    """The URLs of two hosts that serve the same pages, 127.0.0.1 and 127.0.0.2."""
    servers = [ThreadingHTTPServer((host, 0), Site) for host in ("127.0.0.1", "127.0.0.2")]
    for server in servers:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield (f"http://127.0.0.1:{servers[0].server_port}", f"http://127.0.0.2:{servers[1].server_port}")
    for server in servers:
        server.shutdown()
        server.server_close()
