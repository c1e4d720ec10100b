"""A wrong place, setting or word ends every command with exit code 2, its name, and what to do."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.refusals import RefusingStore, free_port, refused


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_an_output_that_cannot_be_a_folder_is_named(spec: Path, tmp_path: Path, kind: str) -> None:
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
def test_an_impossible_location_is_named(spec: Path, place: str, says: str) -> None:
    for name in ("status", "verify", "retry", "compact"):
        assert says in refused(name, place)
    for field in ("input.path", "output.path"):
        said = refused("plan", str(spec), "--set", f"{field}={place}")
        assert field in said
        assert says in said
    if place.startswith("s3://"):
        assert "model.source" in refused("plan", str(spec), "--set", f"model.source={place}")


def test_a_quoted_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/out" in refused("status", "~/out")


@pytest.mark.parametrize("place", ["o*t", "o?t", "s3://bucket/o*t"])
def test_an_output_that_is_a_glob_is_refused(spec: Path, store: RefusingStore, place: str) -> None:
    store.status, store.code = 404, "NoSuchKey"
    for name in ("plan", "run"):
        assert "not a glob" in refused(name, str(spec), "--set", f"output.path={place}")


def test_an_output_inside_the_input_is_refused(spec: Path) -> None:
    assert "lie one inside the other" in refused("run", str(spec), "--set", f"output.path={spec.parent}/in/../in/")


@pytest.mark.parametrize("address", ["127.0.0.1:PORT", "ray://127.0.0.1:1", "http://", "http://head:port"])
def test_an_unreachable_cluster_is_named(spec: Path, address: str) -> None:
    address = address.replace("PORT", str(free_port()))
    for words in (["jobs"], ["logs", "ID"], ["cancel", "ID"], ["resume", "ID"], ["submit", str(spec)]):
        assert address in refused(*words, "--address", address)


def test_wrong_words_of_commands_are_named(spec: Path) -> None:
    assert "suite 'nope' does not exist" in refused("bench", "nope")
    assert "--target nope" in refused("deploy", "render", str(spec), "--target", "nope")
    assert "schedule: is missing" in refused("schedule", "tick", str(spec))
    every_day = "schedule={cron: '0 6 * * *'}"
    assert "--at yesterday" in refused("schedule", "tick", str(spec), "--set", every_day, "--at", "yesterday")
    assert "--set x: write key.path=value" in refused("plan", str(spec), "--set", "x")
    assert "--set: changes a spec" in refused("verify", "out", "--set", "name=x")
    assert "this is a folder" in refused("plan", str(spec.parent))


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
def test_a_full_or_read_only_disk_is_named(
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


def test_a_cache_that_is_a_file_is_named(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("MAGBATCH_CACHE", str(tmp_path / "taken"))
    for name in ("run", "plan"):
        assert "MAGBATCH_CACHE" in refused(name, str(spec))
    monkeypatch.delenv("MAGBATCH_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "taken"))
    assert "HOME" in refused("plan", str(spec))


@pytest.mark.parametrize("source", ["owner/none-such", "no such / name", "/nowhere", "builtin:huge"])
def test_a_missing_model_is_named(spec: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
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
def test_metrics_that_cannot_be_served_are_named(spec: Path, tmp_path: Path, field: str, value: str) -> None:
    (tmp_path / "file").write_text("a file")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        value = value.replace("TAKEN", str(taken.getsockname()[1])).replace("FILE", str(tmp_path / "file"))
        assert field in refused("run", str(spec), "--set", f"{field}={value}")
    assert not (tmp_path / "out/_magbatch/plan.parquet").exists()


def test_places_that_cannot_be_written_are_named(spec: Path, tmp_path: Path) -> None:
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
