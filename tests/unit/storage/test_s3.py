"""Answers of an S3 server, and the errors that are made of them."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from magbatch.errors import StorageError
from magbatch.storage import open_store, patience
from magbatch.storage import s3 as s3_storage
from magbatch.storage.inputs import stat_input
from magbatch.storage.patience import PatientStore
from magbatch.storage.s3 import s3_client
from magbatch.storage.search import find_input


@dataclass
class Answer:
    """Answer of a server. If `cut`, the connection ends before the body does."""

    status: int
    body: bytes = b""
    cut: bool = False


def refusal(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())


class ScriptedServer:
    """Speaks HTTP, and answers each request as a function of its method and headers says."""

    def __init__(self) -> None:
        self.script: Callable[[str, Message], Answer | None] = lambda method, headers: Answer(200)
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = server.script(self.command, self.headers)
                if answer is None:
                    server.released.wait(60)
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("ETag", '"tag"')
                self.send_header("Content-Length", str(len(answer.body) + answer.cut))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else answer.body)
                self.close_connection = answer.cut

            do_GET = do_PUT = do_HEAD = do_DELETE = do

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """Clients made during the test go to it."""
    server = ScriptedServer()
    thread = threading.Thread(target=server.server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    s3_client.cache_clear()
    yield server
    s3_client.cache_clear()
    server.released.set()
    server.server.shutdown()
    server.server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("answer", "passing"),
    [
        (refusal(400, "ExpiredToken"), True),
        (refusal(403, "AccessDenied"), True),
        (refusal(404, "NoSuchBucket"), True),
        (refusal(400, "BadDigest"), True),
        (refusal(409, "OperationAborted"), True),
        (refusal(507, "StorageFull"), True),
        (Answer(403, b"<html>a proxy's own page</html>"), True),
        (Answer(404, b"404 page not found"), True),
        (refusal(400, "InvalidArgument"), False),
        (refusal(400, "KeyTooLongError"), False),
        (refusal(405, "MethodNotAllowed"), False),
        (refusal(501, "NotImplemented"), False),
    ],
    ids=lambda value: str(value.body[:40]) if isinstance(value, Answer) else "",
)
def test_a_refusal_is_judged(server: ScriptedServer, answer: Answer, passing: bool) -> None:
    server.script = lambda method, headers: answer
    store = open_store("s3://bucket/root")
    for touch in (
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: store.create("a", b""),
        lambda: store.replace("a", b"", b"old"),
        lambda: store.delete("a"),
        lambda: store.move("a", "b"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StorageError, match="s3://bucket") as refused:
            touch()
        assert refused.value.passing is passing


def test_no_such_name_for_a_bucket_will_never_pass() -> None:
    with pytest.raises(StorageError, match="Not a bucket") as refused:
        open_store("s3://Not a bucket").read("a")
    assert not refused.value.passing


def test_an_object_whose_connection_breaks_is_read_again(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENT_WAIT_S", 0.05)
    answers = iter([Answer(200, b"half", cut=True), Answer(200, b"", cut=True), Answer(200, b"whole")])
    server.script = lambda method, headers: next(answers)
    said: list[StorageError] = []
    assert PatientStore(open_store("s3://bucket"), 30, said.append).read("a") == b"whole"
    assert len(said) == 2


def test_a_server_that_is_silent_holds_nobody_for_ever(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_storage, "S3_ATTEMPTS", 1)
    monkeypatch.setattr(s3_storage, "S3_READ_TIMEOUT_S", 1)
    server.script = lambda method, headers: None
    for touch in (lambda: open_store("s3://bucket").read("a"), lambda: list(open_store("s3://bucket").list(""))):
        with pytest.raises(StorageError, match="timeout") as refused:
            touch()
        assert refused.value.passing


def test_credentials_that_are_replaced_in_their_file_are_taken_up(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENT_WAIT_S", 0.05)
    keys = tmp_path / "credentials"

    def put(key: str) -> None:
        keys.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")

    put("OLD")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def script(method: str, headers: Message) -> Answer:
        return Answer(200, b"data") if "Credential=NEW/" in headers["Authorization"] else refusal(400, "ExpiredToken")

    server.script = script
    said: list[StorageError] = []

    def renew(error: StorageError) -> None:
        said.append(error)
        put("NEW")

    assert PatientStore(open_store("s3://bucket"), 30, renew).read("a") == b"data"
    assert len(said) == 1
    assert "ExpiredToken" in str(said[0])


@pytest.fixture
def forbidding() -> Iterator[str]:
    """An endpoint that speaks S3 and refuses everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_refusal_says_where_credentials_come_from_and_shows_none(forbidding: str) -> None:
    # In a process of its own: a process has one client.
    script = """
from magbatch.errors import StorageError
from magbatch.storage import open_store
from magbatch.storage.search import find_input
for act in (lambda: open_store("s3://bucket").read("a"), lambda: find_input("s3://bucket/in/")):
    try:
        act()
    except StorageError as error:
        print("StorageError", error)
"""
    environment = os.environ | {"AWS_ENDPOINT_URL": forbidding, "AWS_SECRET_ACCESS_KEY": "very-secret"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("StorageError s3://bucket/")
        assert "the credentials come from the standard AWS chain" in line
    assert "very-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_PROFILE", "nope"), ("AWS_ENDPOINT_URL", "nonsense"), ("AWS_DEFAULT_REGION", "no region")]
)
def test_wrong_settings_of_a_machine_are_a_mistake_to_mend(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """Whatever is asked first; they looked like a defect of magbatch."""
    monkeypatch.setenv(name, value)
    caches = (s3_client, s3_storage.quick_s3_client)
    for made in caches:
        made.cache_clear()
    store = open_store("s3://bucket/root")
    acts: list[Callable[[], object]] = [
        lambda: list(store.list("")),
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: store.create("a", b""),
        lambda: store.replace("a", b"", b""),
        lambda: store.move("a", "b"),
        lambda: store.delete("a"),
        lambda: store.keeps_conditions("a", b""),
        lambda: list(open_store("s3://bucket/root", quick=True).list("")),
        lambda: stat_input("s3://bucket/a.parquet"),
        lambda: find_input("s3://bucket/"),
    ]
    for act in acts:
        with pytest.raises(
            StorageError, match=r"^s3://bucket.*the AWS settings of this machine cannot be used"
        ) as refused:
            act()
        assert (refused.value.exit_code, refused.value.passing) == (2, False)
