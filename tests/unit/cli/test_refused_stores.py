"""A store or hub that refuses at first ends every command with exit code 2, the mistake, and what to set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.refusals import RefusingStore, command, commands, forget_stores, free_port, refused

from magbatch.storage import contact


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
def test_a_refusal_of_a_store_at_first_is_a_mistake(
    spec: Path, store: RefusingStore, status: int, code: str, says: str
) -> None:
    store.status, store.code = status, code
    every = commands(spec, "s3://bucket/out")
    for args in every if code == "AccessDenied" else every[:1]:
        forget_stores()
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
        forget_stores()
        assert variable in refused(*args), args


def test_a_machine_without_credentials_is_told_which_to_set(
    spec: Path, store: RefusingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for args in commands(spec, "s3://bucket/out")[:3]:
        forget_stores()
        assert "AWS_ACCESS_KEY_ID" in refused(*args), args


def test_a_store_that_has_answered_may_be_away_later(spec: Path, store: RefusingStore) -> None:
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
    forget_stores()
    with pytest.raises(StorageError) as later:  # in a worker of a job that is under way
        place.read("a")
    assert (later.value.exit_code, later.value.passing) == (3, True)


@pytest.mark.parametrize("field", ["output.path", "input.path"])
def test_an_unattended_job_waits_for_a_store_that_is_away_at_first(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], field: str
) -> None:
    """A platform that restarts the job after exit code 3 would stop for good after exit code 2."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(contact, "FIRST_ATTEMPTS", 1)
    args = ["run", str(spec), "--set", f"{field}=s3://bucket/x", "--set", "output.patience_s=0.2"]
    assert "if the store is only away for now, run the same command again later" in refused(*args)
    monkeypatch.setenv("MAGBATCH_UNATTENDED", "1")
    forget_stores()
    result = command(*args)
    assert result.exit_code == 3, result.output
    assert "refuses, trying again" in capfd.readouterr().err
    assert result.stderr.endswith("Run the same command again to continue.\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    forget_stores()
    assert "AWS_ACCESS_KEY_ID" in refused(*args)


def test_an_unreachable_hub_is_named(spec: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command runs in its own process, because the hub's client reads its address at import."""
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


def test_a_store_without_tls_is_named(spec: Path, store: RefusingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{store.server_port}")
    assert "write http://" in refused("status", "s3://bucket/out")


@pytest.mark.parametrize("how", ["unknown", "of the output too"])
def test_a_resumed_job_asks_for_its_input_first(
    spec: Path, s3_endpoint: str, s3: str, store: RefusingStore, monkeypatch: pytest.MonkeyPatch, how: str
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
    forget_stores()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_port}")
    if how == "of the output too":  # whose bucket has answered: the refusal may pass, and does not
        contact.has_answered(s3.removeprefix("s3://"), writing=False)
    said = refused("run", str(spec), "--set", override)
    assert f"input.path {s3}/in: {s3}/in/a.parquet" in said
    assert "s3:GetObject" in said
