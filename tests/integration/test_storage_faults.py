"""Object storage that misbehaves under whole jobs: the exact rows come out all the same."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
from support.fault_proxy import FaultProxy
from support.magbatch_cli import JobFiles, journal, magbatch, start, wait_until

from magbatch.ledger.ledger import Ledger
from magbatch.ledger.verify import verify
from magbatch.schema import ObjectName
from magbatch.storage import open_store

ROWS = 240
BAD = set(range(3, ROWS, 37))


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint.removeprefix("http://"), seed=11) as proxy:
        yield proxy


@pytest.fixture
def on_s3(job: JobFiles, s3: str) -> tuple[str, str]:
    """A job from S3 to S3: its spec and its output."""
    job.write_input(ROWS, question=[None if index in BAD else f"What is {index}?" for index in range(ROWS)])
    boto3.client("s3").upload_file(str(job.input / "a.parquet"), s3.removeprefix("s3://"), "in/a.parquet")
    job.engine |= {"token_s": 0.02, "max_num_seqs": 12}
    columns = {"id": "id", "prompt": "question"}
    spec = job.write_spec(
        input={"path": f"{s3}/in/", "columns": columns}, output={"path": f"{s3}/out", "commit_interval_s": 0.3}
    )
    return spec, f"{s3}/out"


def committed(output: str) -> int:
    """Rows in visible objects, straight from the store."""
    names = [
        ObjectName.parse(item.name) for kind in ("results", "errors") for item in open_store(output).list(f"{kind}/")
    ]
    return sum(name.rows for name in names if name is not None)


def records(output: str, kind: str) -> list[dict[str, Any]]:
    """All records of a kind, of every visible object."""
    store = open_store(output)
    objects = [store.read(item.name) for item in store.list(f"{kind}/")]
    return [row for data in objects for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def check_rows(output: str) -> None:
    """Every planned row once, as the objects themselves say; and the proof agrees."""
    ids = {kind: [row["id"] for row in records(output, kind)] for kind in ("results", "errors")}
    assert sorted(ids["results"] + ids["errors"]) == sorted(f"id-{index}" for index in range(ROWS))
    assert set(ids["errors"]) == {f"id-{index}" for index in BAD}
    found = verify(Ledger(output))
    assert found.verified, found.problems
    assert (found.planned, found.answered, found.failed) == (ROWS, ROWS - len(BAD), len(BAD))
    assert magbatch("verify", output).returncode == 0


@pytest.mark.fire
def test_a_job_goes_through_a_storm(
    job: JobFiles, on_s3: tuple[str, str], proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 and 500 on every fifth call, PUTs cut or their answers lost, late listings; credentials that expire, and
    a bucket that is gone for a while. The command ends with 0, and asks for no row twice."""
    spec, output = on_s3
    proxy.add("slow_down", 0.1)
    proxy.add("internal", 0.1)
    process = start("run", spec, log=job.folder / "log", AWS_ENDPOINT_URL=proxy.endpoint)
    log = Path(job.folder / "log")
    wait_until(lambda: committed(output) > ROWS // 8 or process.poll() is not None, "first commits")
    assert process.poll() is None, log.read_text()
    proxy.add("cut_put", 0.15)
    proxy.add("lost_answer", 0.15)
    proxy.add("late_list", 0.5)
    wait_until(lambda: committed(output) > ROWS // 3 or process.poll() is not None, "more commits")
    proxy.add("expired", seconds=30)
    wait_until(lambda: committed(output) > ROWS // 2 or process.poll() is not None, "commits after the credentials")
    proxy.add("no_bucket", seconds=60)
    assert process.wait(500) == 0, log.read_text()
    certain = ("slow_down", "internal", "expired", "no_bucket", "late_list")
    assert all(proxy.injected[kind] for kind in certain), proxy.injected
    assert proxy.injected["cut_put"] + proxy.injected["lost_answer"] > 0, proxy.injected
    assert "the output's storage refuses, trying again" in log.read_text()
    asked = journal(job.journal)
    assert (len(asked), set(asked.values())) == (ROWS - len(BAD), {1}), "a row was paid for twice"
    proxy.clear()
    check_rows(output)


@pytest.mark.fire  # an outage, and the lease of the run that could not give it back
def test_a_store_that_stays_away_ends_the_command_and_the_same_one_goes_on(
    job: JobFiles, on_s3: tuple[str, str], proxy: FaultProxy
) -> None:
    spec, output = on_s3
    arguments = ["run", spec, "--set", "output.patience_s=3"]
    process = start(*arguments, log=job.folder / "log", AWS_ENDPOINT_URL=proxy.endpoint)
    wait_until(lambda: committed(output) > ROWS // 4 or process.poll() is not None, "first commits")
    proxy.add("no_bucket")
    assert process.wait(200) == 3
    before = {row["row_id"] for kind in ("results", "errors") for row in records(output, kind)}
    asked = journal(job.journal)
    log = (job.folder / "log").read_text()
    (line,) = [line for line in log.splitlines() if line.startswith("magbatch: ")]
    assert line.startswith(f"magbatch: {output.removesuffix('out')}")  # whichever was asked for first, input or output
    assert line.endswith("there is no such bucket")
    assert "Run the same command again to continue." in log
    assert "Traceback" not in log
    assert before, "nothing was committed before the store went away"
    proxy.clear()
    rest = magbatch(*arguments, AWS_ENDPOINT_URL=os.environ["AWS_ENDPOINT_URL"])
    assert rest.returncode == 0, rest.stderr
    assert {row_id: journal(job.journal).get(row_id) for row_id in before} == {
        row_id: asked.get(row_id) for row_id in before
    }, "a committed row was asked again"
    check_rows(output)


@pytest.mark.fire  # minutes: the second is longer than three leases live
@pytest.mark.parametrize("seconds", [70, 200])
def test_a_store_that_is_away_for_less_than_its_patience_ends_nothing(
    job: JobFiles, on_s3: tuple[str, str], proxy: FaultProxy, seconds: int
) -> None:
    """Every request is refused for so long. The command ends with 0, and asks for no row twice."""
    spec, output = on_s3
    process = start("run", spec, log=job.folder / "log", AWS_ENDPOINT_URL=proxy.endpoint)
    log = job.folder / "log"
    wait_until(lambda: committed(output) > ROWS // 4 or process.poll() is not None, "first commits")
    assert process.poll() is None, log.read_text()
    before = committed(output)
    proxy.add("slow_down", seconds=seconds)
    assert process.wait(seconds + 300) == 0, log.read_text()
    assert before < ROWS
    assert proxy.injected["slow_down"] > 0
    asked = journal(job.journal)
    assert (len(asked), set(asked.values())) == (ROWS - len(BAD), {1}), "a row was paid for twice"
    proxy.clear()
    check_rows(output)
