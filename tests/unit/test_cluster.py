"""A cluster that cannot be used is told by one clear line, before anything is sent to it."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray
from typer.testing import CliRunner

from magbatch.cli.app import app


@contextmanager
def dashboard(status: int, body: str) -> Iterator[str]:
    """Answers whatever it is asked in one way."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, json.dumps({"version": "4", "ray_version": "2.9.0"}), f"runs Ray 2.9.0, this is Ray {ray.__version__}"),
        (404, "no such page", "404"),
        (401, "who are you", "wants a token: set RAY_AUTH_TOKEN"),
        (200, "<html>a router's page</html>", "http://127.0.0.1"),
    ],
)  # fmt: skip
def test_what_is_no_cluster_of_this_version_is_refused(status: int, body: str, said: str) -> None:
    with dashboard(status, body) as address:
        done = CliRunner().invoke(app, ["jobs", "--address", address])
    assert done.exit_code == 3, done.output
    assert said in done.output
    assert address in done.output
    assert "Traceback" not in done.output


def test_a_job_id_is_asked_of_the_cluster_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with dashboard(200, json.dumps({"version": "4", "ray_version": "2.9.0"})) as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        asked = CliRunner().invoke(app, ["status", "receipts-1a2b3c4d"])
        elsewhere = CliRunner().invoke(app, ["status", "out/receipts"])
    assert (asked.exit_code, "runs Ray 2.9.0" in asked.output) == (3, True)
    assert (elsewhere.exit_code, "no magbatch job here" in elsewhere.output) == (2, True)
