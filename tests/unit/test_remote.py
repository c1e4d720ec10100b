"""A cluster that cannot be used is told by one clear line, before anything is sent to it."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from typer.testing import CliRunner

from magbatch.cli.app import app
from magbatch.remote import _is_open, environment


@contextmanager
def dashboard(status: int, body: str, token: str | None = None, heard: list[str] | None = None) -> Iterator[str]:
    """Answers whatever it is asked in one way; with a token, to who sends it alone, as Ray's own does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("Authorization", "")
            if heard is not None:
                heard.append(sent)
            right = token is None or sent == f"Bearer {token}"
            self.send_response(status if right else 403 if sent else 401)
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
        (500, "a bad day", "500 Server Error"),
        (200, "<html>a router's page</html>", "http://127.0.0.1"),
    ],
)  # fmt: skip
def test_what_is_no_cluster_of_this_version_is_refused(status: int, body: str, said: str) -> None:
    with dashboard(status, body) as address:
        done = CliRunner().invoke(app, ["jobs", "--address", address])
    assert done.exit_code == (3 if status == 500 else 2), done.output
    assert said in done.output
    assert address in done.output
    assert "Traceback" not in done.output


def test_a_job_id_is_asked_of_the_cluster_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # a checkout may have an output of this name
    with dashboard(200, json.dumps({"version": "4", "ray_version": "2.9.0"})) as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        asked = CliRunner().invoke(app, ["status", "receipts-1a2b3c4d"])
        elsewhere = CliRunner().invoke(app, ["status", "out/receipts"])
    assert (asked.exit_code, "runs Ray 2.9.0" in asked.output) == (2, True)
    assert (elsewhere.exit_code, "no magbatch job here" in elsewhere.output) == (2, True)


OTHER = json.dumps({"version": "4", "ray_version": "2.9.0"})  # the first that is said after the token was taken
ANOTHER_VERSION = "runs Ray 2.9.0"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home directory of the test's own, and no token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    AuthenticationTokenLoader.instance().reset_cache()
    yield tmp_path
    AuthenticationTokenLoader.instance().reset_cache()


def _set_token(home: Path, monkeypatch: pytest.MonkeyPatch, where: str, token: str) -> None:
    file = home / (".ray/auth_token" if where == "~/.ray/auth_token" else "token")
    if where == "RAY_AUTH_TOKEN":
        monkeypatch.setenv(where, token)
        return
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{token}\n")
    if where == "RAY_AUTH_TOKEN_PATH":
        monkeypatch.setenv(where, str(file))


@pytest.mark.parametrize("where", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"])
def test_a_cluster_that_asks_is_sent_the_token_at_hand(home: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    heard: list[str] = []
    _set_token(home, monkeypatch, where, "sesame")
    with dashboard(200, OTHER, "sesame", heard) as address:
        done = CliRunner().invoke(app, ["jobs", "--address", address])
    assert (done.exit_code, ANOTHER_VERSION in done.output) == (2, True)
    assert heard[0] == ""
    assert set(heard[1:]) == {"Bearer sesame"}
    assert "unencrypted" not in done.output, "it stays within this machine"

    AuthenticationTokenLoader.instance().reset_cache()
    with dashboard(200, OTHER, "another") as address:
        done = CliRunner().invoke(app, ["jobs", "--address", address])
    assert done.exit_code == 2
    assert f"{address}: the cluster refuses the token of {where}" in done.output
    assert "sesame" not in done.output
    assert "same command again" not in done.output


def test_a_cluster_that_asks_for_a_token_where_there_is_none_names_the_variable(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dashboard(200, OTHER, "sesame") as address:
        done = CliRunner().invoke(app, ["jobs", "--address", address])
        assert done.exit_code == 2
        assert "asks for a token, and none is set: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH" in done.output
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "nowhere"))
        done = CliRunner().invoke(app, ["jobs", "--address", address])
    assert done.exit_code == 2
    assert f"RAY_AUTH_TOKEN_PATH {home / 'nowhere'}: cannot be read" in done.output


@pytest.mark.usefixtures("home")
def test_a_submitted_job_knows_that_nobody_attends_it(tmp_path: Path) -> None:
    assert environment(str(tmp_path))["env_vars"]["MAGBATCH_UNATTENDED"] == "1"


def test_a_cluster_that_does_not_ask_is_sent_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "sesame")
    heard: list[str] = []
    with dashboard(200, OTHER, heard=heard) as address:
        done = CliRunner().invoke(app, ["jobs", "--address", address])
    assert (done.exit_code, set(heard)) == (2, {""})
    assert ANOTHER_VERSION in done.output


@pytest.mark.parametrize(
    ("address", "readable"),
    [("http://head:8265", True), ("http://10.1.2.3", True), ("https://head", False), ("http://127.0.0.1:1", False),
     ("http://localhost:1", False), ("http://[::1]:1", False)],
)  # fmt: skip
def test_a_token_is_open_on_its_way_to_another_machine_without_tls(address: str, readable: bool) -> None:
    assert _is_open(address) is readable


@pytest.mark.parametrize("address", ["http://me:sesame@head:8265", "ftp://head", "http://", "http://head:x", "ray://h"])
def test_what_is_no_address_is_refused_and_no_password_is_repeated(address: str) -> None:
    done = CliRunner().invoke(app, ["jobs", "--address", address])
    assert done.exit_code == 2
    assert "write the cluster's dashboard, http://head:8265" in done.output
    assert "sesame" not in done.output


RIGHT_VERSION = {"version": "4", "ray_version": ray.__version__}
SPEC_TEXT = """name: x
model: {source: builtin:tiny, engine: fake}
input: {path: /in, columns: {prompt: q}}
output: {path: /out}
"""
A_JOB = {
    "type": "SUBMISSION", "submission_id": "x-1", "status": "RUNNING", "entrypoint": "exec", "start_time": 1,
    "metadata": {"magbatch.spec": SPEC_TEXT, "magbatch.name": "x", "magbatch.output": "/out"},
}  # fmt: skip
COMMANDS = (["jobs"], ["status", "x-1"], ["logs", "x-1"], ["logs", "-f", "x-1"], ["cancel", "x-1"], ["resume", "x-1"])
DEEP = "[" * 100_000
NO_ANSWERS = ["{}", "[]", "null", "5", '"x"', "", "<html>", DEEP, '{"a": 1}', "[1]", "[null]", '[{"a": 1}]', "\ufeff{}"]
ODD_FIELDS: list[dict[str, object]] = [
    {"status": "DANCING"}, {"status": None}, {"start_time": 10**15}, {"start_time": -(10**15)}, {"end_time": 10**400},
    {"start_time": "x"}, {"metadata": 1}, {"metadata": {"magbatch.spec": 1}}, {"submission_id": ["x-1"]},
    {"driver_exit_code": "x"}, {"message": {}}, {"message": "\ud800"},
]  # fmt: skip


class _AnyCluster(http.server.BaseHTTPRequestHandler):
    """Answers a path by the text of the first key that the request begins with."""

    by_path: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = f"{self.command} {self.path}"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(next((text for path, text in self.by_path.items() if asked.startswith(path)), "").encode())

    do_POST = do_PUT = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def any_cluster() -> Iterator[str]:
    """Address of a server that answers as `_AnyCluster.by_path` says."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _AnyCluster) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def is_no_cluster(address: str, words: list[str], by_path: dict[str, str]) -> None:
    _AnyCluster.by_path = by_path
    done = CliRunner().invoke(app, [*words, "--address", address])
    assert (done.exit_code, f"{address} is not a Ray cluster: " in done.output) == (2, True), (
        words, done.output, done.exception,
    )  # fmt: skip
    assert "Traceback" not in done.output


@pytest.fixture
def submitted(tmp_path: Path) -> list[str]:
    """The command that submits a job."""
    (tmp_path / "x.yaml").write_text(SPEC_TEXT)
    return ["submit", str(tmp_path / "x.yaml")]


@pytest.mark.parametrize(
    "body",
    [*NO_ANSWERS, '{"ray_version": null}', '{"ray_version": 5}', '{"ray_version": "x"}', '{"ray_version": ["2.9.0"]}'],
    ids=lambda body: body[:20],
)
def test_an_answer_to_the_version_that_no_ray_gives(any_cluster: str, submitted: list[str], body: str) -> None:
    commands = (*COMMANDS, submitted) if body == "{}" else COMMANDS[:1]  # all commands ask for the version in one way
    for words in commands:
        is_no_cluster(any_cluster, words, {"GET /api/version": body})


@pytest.mark.filterwarnings("ignore:ssl=None is deprecated")  # by Ray's own client
@pytest.mark.parametrize("body", NO_ANSWERS, ids=lambda body: body[:20])
def test_an_answer_to_a_command_that_no_ray_gives(any_cluster: str, submitted: list[str], body: str) -> None:
    version = {"GET /api/version": json.dumps(RIGHT_VERSION)}
    ended = json.dumps([A_JOB | {"status": "STOPPED"}])
    running = json.dumps([A_JOB])
    if body not in ("[]", "{}", ""):  # no jobs
        for words in (
            (*COMMANDS, submitted) if body == "null" else COMMANDS[:2]
        ):  # one lists the jobs, one looks for a job
            is_no_cluster(any_cluster, words, version | {"GET /api/jobs/": body})
    of_job = version | {"GET /api/jobs/x-1": body, "POST /api/jobs/": body}
    is_no_cluster(any_cluster, ["logs", "x-1"], of_job | {"GET /api/jobs/": running})
    is_no_cluster(any_cluster, ["logs", "-f", "x-1"], of_job | {"GET /api/jobs/": running})
    is_no_cluster(any_cluster, ["cancel", "x-1"], of_job | {"GET /api/jobs/": running})
    is_no_cluster(any_cluster, ["resume", "x-1"], of_job | {"GET /api/jobs/": ended})
    is_no_cluster(any_cluster, submitted, of_job | {"GET /api/jobs/": "[]"})


@pytest.mark.parametrize("odd", ODD_FIELDS, ids=lambda odd: str(odd)[:40])
def test_a_job_that_no_ray_tells_of(any_cluster: str, submitted: list[str], odd: dict[str, object]) -> None:
    listed = {"GET /api/version": json.dumps(RIGHT_VERSION), "GET /api/jobs/": json.dumps([A_JOB | odd])}
    for words in (*COMMANDS, submitted) if "metadata" in odd else COMMANDS[:2]:
        is_no_cluster(any_cluster, words, listed)


def test_logs_that_are_no_text(any_cluster: str) -> None:
    listed = {"GET /api/version": json.dumps(RIGHT_VERSION), "GET /api/jobs/x-1": json.dumps({"logs": 5})}
    is_no_cluster(any_cluster, ["logs", "x-1"], listed | {"GET /api/jobs/": json.dumps([A_JOB])})
    listed["GET /api/jobs/x-1"] = json.dumps({"logs": "half \ud800"})
    _AnyCluster.by_path = listed | {"GET /api/jobs/": json.dumps([A_JOB])}
    done = CliRunner().invoke(app, ["logs", "x-1", "--address", any_cluster])
    assert (done.exit_code, done.output) == (0, "half ?")
