"""A real S3 server under jobs, and kill -9 of all of it; what it refuses half-way, and what it lets only one do."""

import os
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.magbatch_cli import JobFiles, journal, magbatch, start, wait_until
from support.rgw import Rgw, missing
from unit.storage import test_base as contract

from magbatch.ledger.ledger import Ledger
from magbatch.storage import open_store
from magbatch.storage.s3 import quick_s3_client, s3_client

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"RGW {missing()}")


@pytest.fixture(scope="module")
def rgw() -> Iterator[Rgw]:
    """The server of this module's tests."""
    with tempfile.TemporaryDirectory(prefix="rgw-", ignore_cleanup_errors=True) as folder:
        server = Rgw(Path(folder), os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        try:
            server.start()
            yield server
        finally:
            server.crash()


@pytest.fixture
def bucket(rgw: Rgw, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a new bucket on it, where AWS_ENDPOINT_URL points for the test's length."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", rgw.endpoint)
    forget_clients()
    name = f"test-{uuid.uuid4().hex[:16]}"
    s3_client().create_bucket(Bucket=name)
    yield f"s3://{name}"
    forget_clients()


def forget_clients() -> None:
    """The next ones are made for the endpoint of then."""
    for made in (s3_client, quick_s3_client):
        made.cache_clear()


TESTS = [test for name, test in vars(contract).items() if name.startswith("test_")]
CONTRACT = [test for test in TESTS if [*signature(test).parameters] == ["root"]]


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_it_keeps_the_contract_of_a_store(bucket: str, check: Callable[[str], None]) -> None:
    """The contract of every object store: the same tests as for a disk and for the other S3 server."""
    assert len(CONTRACT) > 8
    check(f"{bucket}/root")


def test_a_put_that_is_cut_is_never_visible(bucket: str, rgw: Rgw) -> None:
    store = open_store(bucket)
    data = os.urandom(1 << 20)
    url = s3_client().generate_presigned_url(
        "put_object", Params={"Bucket": bucket.removeprefix("s3://"), "Key": "results/a"}, ExpiresIn=600
    )
    parts = urlsplit(url)
    head = f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(data)}\r\n\r\n"
    for cut in (0, 1, len(data) // 2, len(data) - 1):
        with socket.create_connection((str(parts.hostname), int(parts.port or 80))) as connection:
            connection.sendall(head.encode() + data[:cut])
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1 << 16):  # until the server has given it up
                pass
        assert list(store.list("")) == []
    store.write("results/a", data)
    assert store.read("results/a") == data


def committed(output: str) -> int:
    """Rows in visible objects."""
    return sum(part.rows for kind in ("results", "errors") for part in Ledger(output).objects(kind))


def ids(output: str, kind: str) -> list[str]:
    """The users' ids of all records of a kind."""
    ledger = Ledger(output)
    found: list[str] = []
    for part in ledger.objects(kind):
        found += pq.read_table(pa.BufferReader(ledger.store.read(str(part)))).column("id").to_pylist()
    return found


@pytest.mark.fire
def test_a_job_outlives_a_kill_of_its_whole_object_store(job: JobFiles, bucket: str, rgw: Rgw) -> None:
    """Twice: once for as long as a restart takes, once until the job has said that it waits."""
    rows = 300
    bad = set(range(7, rows, 50))
    job.write_input(rows, question=[None if index in bad else f"What is {index}?" for index in range(rows)])
    open_store(bucket).write("in/a.parquet", (job.input / "a.parquet").read_bytes())
    job.engine |= {"token_s": 0.02, "max_num_seqs": 12}
    output = f"{bucket}/out"
    spec = job.write_spec(
        input={"path": f"{bucket}/in/", "columns": {"id": "id", "prompt": "question"}, "shard_rows": 16},
        output={"path": output, "commit_interval_s": 0.3},
    )
    log = job.folder / "log"
    process = start("run", spec, log=log)
    for moment, waits in ((rows // 5, False), (rows // 2, True)):
        wait_until(lambda: committed(output) >= moment or process.poll() is not None, f"{moment} rows")  # noqa: B023
        assert process.poll() is None, log.read_text()
        rgw.crash()
        if waits:
            wait_until(lambda: "storage refuses, trying again" in log.read_text(), "the job to wait")
        rgw.start()
    assert process.wait(400) == 0, log.read_text()
    assert sorted(ids(output, "results")) == sorted(f"id-{index}" for index in range(rows) if index not in bad)
    assert sorted(ids(output, "errors")) == sorted(f"id-{index}" for index in bad)
    assert set(journal(job.journal).values()) == {1}, "an answered row was asked again"
    verified = magbatch("verify", output)
    assert verified.returncode == 0, verified.stdout + verified.stderr
