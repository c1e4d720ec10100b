"""A permanent mistake ends every command at once: exit code 2, what is wrong by its name, and what to do."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from magbatch.cli.app import app
from magbatch.storage import contact
from magbatch.storage import s3 as s3_storage

SPEC = """\
name: small
model: {source: "builtin:tiny", engine: fake}
input: {path: INPUT, columns: {prompt: q}}
output: {path: OUTPUT}
replicas: {gpus: 0}
"""


def clear() -> None:
    for made in (s3_storage.s3_client, s3_storage.quick_s3_client):
        made.cache_clear()
    contact.forget()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """A process that has met no store yet, as a command is."""
    clear()
    yield
    clear()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"q": ["What is 1?", "What is 2?"]}), tmp_path / "in/a.parquet")
    path = tmp_path / "job.yaml"
    path.write_text(SPEC.replace("INPUT", str(tmp_path / "in")).replace("OUTPUT", str(tmp_path / "out")))
    return path


def command(*args: str) -> Result:
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*args: str) -> str:
    """What a command says that a mistake has ended."""
    result = command(*args)
    assert result.exit_code == 2, result.output
    assert "Run the same command" not in result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("magbatch: ")
    return result.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(spec: Path, place: str) -> list[list[str]]:
    """Each command that meets a store, with the output there."""
    return [
        ["run", str(spec), "--set", f"output.path={place}"],
        ["plan", str(spec), "--set", f"input.path={place}"],
        ["plan", str(spec), "--set", f"model.source={place}"],
        *([name, place] for name in ("status", "verify", "retry", "compact")),
    ]


class Refusing(ThreadingHTTPServer):
    """Answers every request alike."""

    daemon_threads = True
    status, code = 403, "AccessDenied"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
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

    with Refusing(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "AWS_SESSION_TOKEN"),
        (403, "AccessDenied", "s3:ListBucket"),
        (400, "AuthorizationHeaderMalformed", "AWS_REGION"),
        (404, "NoSuchBucket", "there is no such bucket"),
        (404, "", "AWS_ENDPOINT_URL=http://127.0.0.1"),
    ],
)
def test_what_a_store_refuses_at_first_is_a_mistake(
    spec: Path, store: Refusing, status: int, code: str, says: str
) -> None:
    store.status, store.code = status, code
    every = commands(spec, "s3://bucket/out")
    for args in every if code == "AccessDenied" else every[:1]:
        clear()
        said = refused(*args)
        assert says in said, args
        assert ("s3://bucket:" if code == "NoSuchBucket" else "s3://bucket/out") in said


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:PORT"),
        ("AWS_ENDPOINT_URL", "http://no-such-host.invalid:9000"),
        ("AWS_ENDPOINT_URL", "localhost:9000"),
        ("AWS_PROFILE", "nope"),
        ("AWS_DEFAULT_REGION", "no region"),
    ],
)
def test_a_wrong_setting_of_this_machine_is_named(
    spec: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value.replace("PORT", str(free_port())))
    every = commands(spec, "s3://bucket/out")
    for args in every if variable == "AWS_PROFILE" else every[-2:]:
        clear()
        assert variable in refused(*args), args


def test_a_machine_without_credentials_is_told_which_to_set(
    spec: Path, store: Refusing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for args in commands(spec, "s3://bucket/out")[:3]:
        clear()
        assert "AWS_ACCESS_KEY_ID" in refused(*args), args


def test_a_store_that_has_answered_may_be_away_for_a_while(spec: Path, store: Refusing) -> None:
    from magbatch.errors import StorageError
    from magbatch.storage import open_store

    store.status, store.code = 404, "NoSuchKey"
    place = open_store("s3://bucket/out", quick=True)
    with contact.command():
        with pytest.raises(FileNotFoundError):
            place.read("a")
        store.status, store.code = 403, "AccessDenied"
        with pytest.raises(StorageError) as reading:
            place.read("a")
        with pytest.raises(StorageError) as writing:  # which was never allowed
            place.write("a", b"")
    assert (reading.value.exit_code, writing.value.exit_code) == (3, 2)
    clear()
    with pytest.raises(StorageError) as later:  # in a worker of a job that is under way
        place.read("a")
    assert (later.value.exit_code, later.value.passing) == (3, True)


@pytest.mark.parametrize("field", ["output.path", "input.path"])
def test_a_store_that_is_away_at_first_is_waited_for_by_a_job_that_nobody_attends(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], field: str
) -> None:
    """What begins it again after exit code 3 would stop for good after a 2."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(contact, "FIRST_ATTEMPTS", 1)
    args = ["run", str(spec), "--set", f"{field}=s3://bucket/x", "--set", "output.patience_s=0.2"]
    assert "if the store is only away for now, the same command goes on" in refused(*args)
    monkeypatch.setenv("MAGBATCH_UNATTENDED", "1")
    clear()
    result = command(*args)
    assert result.exit_code == 3, result.output
    assert "refuses, trying again" in capfd.readouterr().err
    assert result.stderr.endswith("Run the same command again to go on.\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    clear()
    assert "AWS_ACCESS_KEY_ID" in refused(*args)


def test_a_hub_without_a_network_is_told_as_that(spec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads its address as it is imported."""
    environment = os.environ | {
        "HF_ENDPOINT": "http://no-such-host.invalid", "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"
    }  # fmt: skip
    for unattended, code in (("", 2), ("1", 3)):
        words = ["run", str(spec), "--set=model.source=owner/name", "--set=output.patience_s=0"]
        done = subprocess.run(
            [sys.executable, "-m", "magbatch", *words],
            env=environment | {"MAGBATCH_UNATTENDED": unattended}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "HF_ENDPOINT=http://no-such-host.invalid cannot be reached from this machine" in done.stderr
        assert "check the network, or set model.source to a directory or s3://" in done.stderr
        assert "HF_HOME" not in done.stderr


def test_a_store_without_tls_is_told_as_that(spec: Path, store: Refusing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{store.server_port}")
    assert "write http://" in refused("status", "s3://bucket/out")


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_an_output_that_can_be_no_folder(spec: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "taken").write_text("a file")
    place = str(tmp_path / "taken") + ("" if kind == "file" else "/out")
    for name in ("status", "verify", "retry", "compact"):
        assert place in refused(name, place)
    assert "output.path" in refused("run", str(spec), "--set", f"output.path={place}")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("S3://bucket/x", "only local paths and s3://"),
        ("file:///x", "only local paths and s3://"),
        ("gs://bucket/x", "only local paths and s3://"),
        ("http://host/x", "only local paths and s3://"),
        ("", "empty"),
        ("s3://no bucket/x", "'no bucket' is not a bucket name"),
    ],
)
def test_a_place_that_can_be_none(spec: Path, place: str, says: str) -> None:
    for name in ("status", "verify", "retry", "compact"):
        assert says in refused(name, place)
    for field in ("input.path", "output.path"):
        said = refused("plan", str(spec), "--set", f"{field}={place}")
        assert field in said
        assert says in said
    if place.startswith("s3://"):
        assert "model.source" in refused("plan", str(spec), "--set", f"model.source={place}")


def test_a_home_in_quotes_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/out" in refused("status", "~/out")


@pytest.mark.parametrize("place", ["o*t", "o?t", "s3://bucket/o*t"])
def test_an_output_that_is_a_glob(spec: Path, store: Refusing, place: str) -> None:
    store.status, store.code = 404, "NoSuchKey"
    for name in ("plan", "run"):
        assert "not a glob" in refused(name, str(spec), "--set", f"output.path={place}")


def test_an_output_that_is_the_input(spec: Path) -> None:
    assert "lie one inside the other" in refused("run", str(spec), "--set", f"output.path={spec.parent}/in/../in/")


@pytest.mark.parametrize("address", ["127.0.0.1:PORT", "ray://127.0.0.1:1", "http://", "http://head:port"])
def test_a_cluster_that_cannot_be_asked(spec: Path, address: str) -> None:
    address = address.replace("PORT", str(free_port()))
    for words in (["jobs"], ["logs", "ID"], ["cancel", "ID"], ["resume", "ID"], ["submit", str(spec)]):
        assert address in refused(*words, "--address", address)


def test_words_that_are_none(spec: Path) -> None:
    assert "no suite 'nope'" in refused("bench", "nope")
    assert "--target nope" in refused("deploy", "render", str(spec), "--target", "nope")
    assert "schedule: is not set" in refused("schedule", "tick", str(spec))
    every_day = "schedule={cron: '0 6 * * *'}"
    assert "--at yesterday" in refused("schedule", "tick", str(spec), "--set", every_day, "--at", "yesterday")
    assert "--set x: write key.path=value" in refused("plan", str(spec), "--set", "x")
    assert "--set: changes a spec" in refused("verify", "out", "--set", "name=x")
    assert "this is a folder" in refused("plan", str(spec.parent))


@pytest.mark.parametrize("how", ["unknown", "of the output too"])
def test_a_job_that_goes_on_asks_for_its_input_first(
    spec: Path, s3_endpoint: str, s3: str, store: Refusing, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Before an engine starts, and readers wait for a store that will not give it."""
    import boto3

    from magbatch.jobs import opening
    from magbatch.ledger.ledger import Ledger
    from magbatch.plan.make import make_plan
    from magbatch.spec import load

    monkeypatch.setattr(opening, "FIRST_PATIENCE_S", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    boto3.client("s3").upload_file(str(spec.parent / "in/a.parquet"), s3.removeprefix("s3://"), "in/a.parquet")
    override = f"input.path={s3}/in"
    job = load(str(spec), [override])
    Ledger(job.output.path).begin(job, make_plan(job))
    clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_port}")
    if how == "of the output too":  # whose bucket has answered: the refusal may pass, and does not
        contact.has_answered(s3.removeprefix("s3://"), writing=False)
    said = refused("run", str(spec), "--set", override)
    assert f"input.path {s3}/in: {s3}/in/a.parquet" in said
    assert "s3:GetObject" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if made.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_that_takes_nothing_from_the_very_beginning(
    spec: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "full":
        (small_disk / "ballast").write_bytes(bytes(256 << 10))
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "output.path" in refused("run", str(spec), "--set", f"output.path={small_disk}/out")
    monkeypatch.setenv("MAGBATCH_CACHE", f"{small_disk}/cache")
    for name in ("run", "plan"):
        assert f"MAGBATCH_CACHE={small_disk}/cache" in refused(name, str(spec))
    monkeypatch.undo()
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    assert "TMPDIR" in refused("run", str(spec))


def test_a_cache_that_is_a_file(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("MAGBATCH_CACHE", str(tmp_path / "taken"))
    for name in ("run", "plan"):
        assert "MAGBATCH_CACHE" in refused(name, str(spec))
    monkeypatch.delenv("MAGBATCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "taken"))
    assert "HOME" in refused("plan", str(spec))


@pytest.mark.parametrize("source", ["owner/none-such", "no such / name", "/nowhere", "builtin:huge"])
def test_a_model_that_cannot_be_had(spec: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    said = refused("plan", str(spec), "--set", f"model.source={source}")
    assert f"model.source {source}" in said
    assert len(said) < 600


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metrics.bind", "10.255.255.1"),
        ("metrics.port", "TAKEN"),
        ("metrics.file_sd", "FILE/folder"),
        ("metrics.push_gateway", "no url"),
    ],
)
def test_metrics_that_cannot_be_served(spec: Path, tmp_path: Path, field: str, value: str) -> None:
    (tmp_path / "file").write_text("a file")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        value = value.replace("TAKEN", str(taken.getsockname()[1])).replace("FILE", str(tmp_path / "file"))
        assert field in refused("run", str(spec), "--set", f"{field}={value}")
    assert not (tmp_path / "out/_magbatch/plan.parquet").exists()


def test_places_that_cannot_be_written(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    taken = f"{tmp_path}/taken/below"
    places = [f"--set={field}=s3://bucket/{field}" for field in ("input.path", "output.path")]
    render = ["deploy", "render", str(spec), "--target", "cron", "--image", "example.com/magbatch:1", *places]
    assert taken in refused(*render, "--set=schedule={cron: '0 6 * * *'}", "--out", taken)
    assert taken in refused("bench", "text", "--keep", taken)
    assert taken in refused("bench", "text", "--json", taken)
    assert taken in refused("schedule", "list", taken)
    assert taken in refused("schedule", "run", taken, "--once")
    assert taken in refused("plan", taken)


def test_a_colon_without_a_blank_is_said(spec: Path) -> None:
    spec.write_text(f"{spec.read_text()}schedule: {{cron:6}}\n")
    assert "schedule.cron:6: no such field; YAML wants a blank after the colon: write `cron: 6`" in refused(
        "plan", str(spec)
    )
