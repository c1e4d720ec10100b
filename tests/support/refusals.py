"""Commands that a mistake ends: exit code 2, and what they print. A store that refuses every request."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from magbatch.cli.app import app
from magbatch.storage import contact
from magbatch.storage import s3 as s3_storage


def forget_stores() -> None:
    """Make this process forget every store that it has met, as a new command has."""
    for made in (s3_storage.s3_client, s3_storage.quick_s3_client):
        made.cache_clear()
    contact.forget()


def command(*args: str) -> Result:
    """Run a command in this process; an exception that is not its exit is raised."""
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*args: str) -> str:
    """Run a command that a mistake ends, and return its message."""
    result = command(*args)
    assert result.exit_code == 2, result.output
    assert "Run the same command" not in result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("magbatch: ")
    return result.stderr


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(spec: Path, place: str) -> list[list[str]]:
    """Each command that meets a store, with the store at `place`."""
    return [
        ["run", str(spec), "--set", f"output.path={place}"],
        ["plan", str(spec), "--set", f"input.path={place}"],
        ["plan", str(spec), "--set", f"model.source={place}"],
        *([name, place] for name in ("status", "verify", "retry", "compact")),
    ]


class RefusingStore(ThreadingHTTPServer):
    """A server that answers every request with one error.

    Attributes:
        status: HTTP status of the answer.
        code: S3's code of the error; empty for an answer that is not S3's.
    """

    daemon_threads = True
    status, code = 403, "AccessDenied"


@contextmanager
def refusing_store() -> Iterator[RefusingStore]:
    """Run a store that refuses every request."""

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code = server.code
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>" if code else "<html>hello</html>"
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body.encode())

        do_GET = do_PUT = do_HEAD = do_DELETE = do

        def log_message(self, *_: object) -> None:
            return

    with RefusingStore(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
