"""Rows whose reader dies: they are found, and their neighbours are answered."""

import io
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from PIL import Image as Pillow
from support.magbatch_cli import JobFiles, descendants, magbatch, named, read, start


class Killer:
    """A web server that kills -9 whatever process asks it for /kill, which is the reader that has the row."""

    def __init__(self) -> None:
        self.kills = 0
        self.readers: list[psutil.Process] = []
        outer = self
        sink = io.BytesIO()
        Pillow.new("RGB", (56, 28), "red").save(sink, "PNG")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/kill":
                    outer.kill(self.client_address[1])
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(sink.getvalue())))
                self.end_headers()
                self.wfile.write(sink.getvalue())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def kill(self, port: int) -> None:
        """Kill the process that has the other end of a connection."""
        for process in psutil.Process(os.getpid()).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if any(one.laddr and one.laddr.port == port for one in process.net_connections("tcp4")):
                    self.kills += 1
                    process.kill()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def killer() -> Iterator[Killer]:
    server = Killer()
    yield server
    server.close()


def test_rows_that_end_their_readers_are_dead_letters_and_their_neighbours_are_answered(
    job: JobFiles, killer: Killer
) -> None:
    rows, hostile = 20, {5, 6}  # two of one shard: each of its four rows is read alone
    job.write_input(rows, picture=[f"{killer.address}/{'kill' if row in hostile else 'fine'}" for row in range(rows)])
    spec = job.write_spec(
        input={
            "path": str(job.input),
            "columns": {"id": "id", "prompt": "question", "images": ["picture"]},
            "shard_rows": 4,
            "fetch_private": True,
        }
    )
    process = start("run", spec, log=job.folder / "log")
    code = process.wait(300)
    assert code == 0, (job.folder / "log").read_text()
    letters = {row["id"] or row["row_id"][-3:]: row["error_code"] for row in read(job.output, "errors")}
    assert letters == {"005": "reader_killer", "006": "reader_killer"}
    answered = {row["id"] for row in read(job.output)}
    assert answered == {f"id-{row}" for row in range(rows) if row not in hostile}
    assert 3 <= killer.kills <= 8
    assert magbatch("verify", str(job.output)).returncode == 0
    assert not named(descendants(process), "ray::")
