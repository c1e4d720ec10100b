"""The server for metrics: slow and idle clients never keep a scraper out."""

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from wsgiref.simple_server import make_server

import httpx

from magbatch.report.metrics_server import Handler, Server


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello\n"]


@contextmanager
def serving(**limits: Any) -> Iterator[int]:
    """Serve with other limits; gives the port."""
    server: Server = make_server("127.0.0.1", 0, hello, type("Limited", (Server,), limits), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def get(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).text


def rest(client: socket.socket) -> bytes:
    """Bytes that the server still sent before it closed."""
    try:
        return client.recv(1000)
    except ConnectionError:
        return b""


IDLE = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 5000), hard))
idle = []
for number in range(2000):
    idle.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    try:
        idle[-1].sendall(b"GET /metrics HTTP/1.1\\r\\nX-Half: ")
    except ConnectionError:  # closed already for one that came later
        pass
    if number % 500 == 499:
        print(number, flush=True)
sys.stdin.read()
"""


def test_two_thousand_idle_connections_take_a_few_threads_and_keep_no_scraper_out() -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with serving() as port:
        flood = [sys.executable, "-S", "-c", IDLE, str(port)]
        with subprocess.Popen(flood, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as idle:
            assert idle.stdout is not None
            for _ in range(4):
                assert idle.stdout.readline().strip().isdigit()
                assert get(port) == "hello\n"
            assert threading.active_count() - threads <= Server.max_connections + 1
            assert len(os.listdir("/proc/self/fd")) - files <= Server.max_connections + 6  # server and pipes
            assert idle.poll() is None
            idle.communicate()


def test_the_oldest_idle_connection_makes_room_for_a_new_one() -> None:
    with serving(max_connections=2) as port:
        first, second = (socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2))
        with first, second:
            assert get(port) == "hello\n"
            assert rest(first) == b"", "closed"
            second.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"200 OK" in rest(second)


def test_a_client_that_never_ends_its_request_is_closed() -> None:
    with serving(life_s=0.1) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        with suppress(ConnectionError):  # a byte now and then, so that no single wait is long
            while not select.select([slow], [], [], 0.02)[0]:
                slow.sendall(b"G")
        assert rest(slow) == b""


def test_a_client_that_goes_away_is_no_error() -> None:
    with serving() as port:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as gone:
                gone.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert get(port) == "hello\n"
