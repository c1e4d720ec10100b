"""Nothing that a command prints controls a terminal, no matter if a row, a machine, a cluster or a file wrote it."""

import http.server
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from support.small_job import SmallJob
from typer.testing import CliRunner

from magbatch.cli.app import app
from magbatch.terminal import json_text, uncoloured, visible

CONTROLS = "\x1b]52;c;aGk=\x07\x9b31m\x7f\r\u202e"
SHOWN = r"\x1b]52;c;aGk=\x07\x9b31m\x7f\r\u202e"


def printed(*args: str) -> str:
    """All that a command prints."""
    result = CliRunner().invoke(app, list(args))
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result.stdout + result.stderr


def steers(text: str) -> bool:
    return any(character in text for character in CONTROLS if not character.isprintable())


@pytest.mark.parametrize(
    ("text", "shown"),
    [(CONTROLS, SHOWN), ("a\tb\nc é 한 \u200e", "a\tb\nc é 한 \u200e"), ("name\udcff", r"name\udcff"), ("\0", r"\x00")],
)
def test_what_would_steer_is_an_escape(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_json_documents_hold_the_same_values_and_steer_nothing() -> None:
    data = {"host": CONTROLS, "é": ["\n\t", 1]}
    for indent in (None, 1):
        assert json.loads(json_text(data, indent)) == data
        assert not steers(json_text(data, indent))
    assert "é" in json_text(data)


def test_what_a_library_printed_loses_its_colours() -> None:
    assert visible(uncoloured("\x1b[36m(pid=1)\x1b[0m 10%\r20%\r\n\x1b[2J")) == "(pid=1) 10%\n20%\n\\x1b[2J"


def test_plan_shows_a_prompt_and_a_files_name(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    folder = tmp_path / "input"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["1"], "question": [f"{CONTROLS}hi"]}), folder / "a.parquet")
    (folder / "\x1b]0;b\x07.parquet").write_bytes(b"no Parquet")
    path = tmp_path / "job.yaml"
    path.write_text(job.spec(input={"on_bad_file": "dead_letter"}).to_yaml(), encoding="utf-8")
    for said in (printed("plan", str(path)), printed("plan", str(path), "--json")):
        assert not steers(said)
        assert "52;c;aGk=" in said
        assert "]0;b" in said


def test_run_shows_its_errors_and_usage_errors(tmp_path: Path) -> None:
    for args in (["run", f"{tmp_path}/{CONTROLS}.yaml"], ["run", "x", f"--{CONTROLS}"], [CONTROLS]):
        said = printed(*args)
        assert not steers(said)
        assert "]52;c;aGk" in said


def test_status_shows_what_another_machine_wrote(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.ask(2)
    job.begin()
    end = {"state": "failed", "message": CONTROLS, "at": 1.0, "exit_code": 2}
    record = {"version": 1, "at": 1.0, "running": False, "end": end}
    job.ledger.store.write("_magbatch/progress.json", json.dumps(record | RUN).encode())
    for said in (printed("status", job.output), printed("status", job.output, "--json")):
        assert not steers(said)
        assert "52;c;aGk=" in said


RUN: dict[str, Any] = {
    "host": CONTROLS, "pid": 4, "place": "", "since": "", "started": 1.0, "planned": 2, "cost": None,
    "currency": "USD", "spent": {"device_s": 0.0},
}  # fmt: skip


@contextmanager
def dashboard() -> Iterator[str]:
    """A Ray cluster's job API with one job, whose record and log somebody else wrote."""
    job = {
        "type": "SUBMISSION", "submission_id": f"id{CONTROLS}", "status": "FAILED", "entrypoint": "x",
        "message": CONTROLS, "metadata": {"magbatch.spec": "", "magbatch.output": f"/out{CONTROLS}"},
    }  # fmt: skip
    answers: dict[str, Any] = {
        "/api/version": {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""},
        "/api/jobs/": [job],
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path, {"logs": CONTROLS})).encode())

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


def test_the_commands_of_a_cluster_show_what_its_jobs_wrote() -> None:
    with dashboard() as address:
        for words in (["jobs"], ["jobs", "--json"], ["logs", f"id{CONTROLS}"], ["status", f"id{CONTROLS}"]):
            said = printed(*words, "--address", address)
            assert not steers(said), words
            assert "52;c;aGk=" in said, words


def test_the_live_line_steers_its_terminal_and_no_text_in_it_does() -> None:
    program = """
import sys
from magbatch.cli.show import live_console
from magbatch.terminal import plain_streams
with plain_streams(), live_console() as console, console.status("busy"):
    console.print(CONTROLS, "said", markup=False, highlight=False)
    print(CONTROLS, "printed", file=sys.stderr)
""".replace("CONTROLS", repr(CONTROLS))
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    ) as process:
        os.close(theirs)
        said = b""
        while data := _read(ours):
            said += data
    os.close(ours)
    assert process.returncode == 0
    text = said.decode()
    assert "\x1b[?25l" in text  # the live line's own
    assert "\x1b]52" not in text
    assert f"{SHOWN} said" in text
    assert " printed" in text
    assert not set(text) & {"\x07", "\x7f", "\x9b", "\u202e"}


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""
