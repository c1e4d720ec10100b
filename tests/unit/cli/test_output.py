"""`status`, `verify`, `retry` and `compact` end with one clear message if they cannot do their work."""

import json
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import command, refused
from support.small_job import SmallJob

from magbatch.jobs.choice import Choice
from magbatch.jobs.retry import Retry, prepare
from magbatch.ledger.lease import Lease
from magbatch.report.heartbeat import Heartbeat
from magbatch.report.progress import JobProgress
from magbatch.storage import open_store

ODD_VALUES = ["abc", None, [1], {}, 1e308, -1, True, 10**30]


def test_a_secret_that_is_set_for_a_retry_is_refused_and_stored_nowhere(failed: SmallJob) -> None:
    gateway = "metrics.push_gateway=http://u:S3CRETPW@h:9091"
    said = refused(command("retry", failed.output, "--set", gateway))
    assert "S3CRETPW" not in said
    stored = {item.name: failed.ledger.store.read(item.name) for item in failed.ledger.store.list("")}
    assert stored
    assert not [name for name, data in stored.items() if b"S3CRETPW" in data]


def test_a_secret_that_an_earlier_version_stored_with_a_retry_is_not_shown(failed: SmallJob) -> None:
    found = prepare(failed.ledger, Choice(), [])
    assert isinstance(found, Retry)
    secret = "metrics.push_gateway=http://u:S3CRETPW@h:9091"
    with suppress(InterruptedError), Lease(failed.ledger.store, print, command=("retry", "--set", secret)).acquire():
        found.output().begin(found.spec, found.plan)
        raise InterruptedError
    name = max(item.name for item in failed.ledger.store.list("_magbatch/lease-"))
    record = json.loads(failed.ledger.store.read(name))
    assert "S3CRETPW" not in str(record)
    failed.ledger.store.write(name, json.dumps(record | {"command": ["retry", "--set", secret]}).encode())
    for option in ([], ["--json"]):
        said = command("status", failed.output, *option).output
        assert "http://(hidden)@h:9091" in said
        assert "S3CRETPW" not in said


def test_a_job_that_is_not_complete_is_named_with_the_command_that_completes_it(job: SmallJob) -> None:
    job.begin()
    for verb in ("retry", "compact"):
        assert f"first: magbatch run {job.output}/_magbatch/spec.yaml" in refused(command(verb, job.output))


@pytest.mark.parametrize("file", ["plan.parquet", "spec.yaml", "manifest.json"])
def test_a_damaged_job_gets_one_clear_message(job: SmallJob, file: str) -> None:
    job.answer()
    job.finalise()
    job.put(f"output/_magbatch/{file}", b"\xff\xfe nothing of the kind: [")
    assert file in refused(command("status", job.output))
    found = command("verify", job.output)
    assert (found.exit_code, found.stdout.count(f"  _magbatch/{file}")) == (1, 1)


@pytest.mark.parametrize("file", ["plan.parquet", "spec.yaml"])
@pytest.mark.parametrize("data", [b"", b"[]", b"PAR1", b"\xff\xfe nothing of the kind: [", b"[" * 20_000])
def test_a_damaged_job_that_is_not_complete_gets_one_clear_message(job: SmallJob, file: str, data: bytes) -> None:
    job.begin()
    job.put(f"output/_magbatch/{file}", data)
    assert file in refused(command("status", job.output))
    found = command("verify", job.output)
    assert (found.exit_code, found.stdout.count(f"  _magbatch/{file}")) == (1, 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--where", "row_timeot"], "did you mean row_timeout?"),
        (["--set", "model.source=x"], "model.source may not change in a retry"),
        (["--set", "sampling.max_tokens=0"], "sampling.max_tokens"),
    ],
)
def test_a_wrong_retry_gets_one_clear_message(failed: SmallJob, args: list[str], message: str) -> None:
    assert message in refused(command("retry", failed.output, *args))


@pytest.mark.parametrize("name", ["retry", "compact"])
def test_an_open_job_is_left_alone(job: SmallJob, name: str) -> None:
    job.begin()
    assert "not complete" in refused(command(name, job.output))


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("name", ["lease-00000001.json", "progress.json"])
def test_a_small_record_that_is_damaged_counts_as_none(job: SmallJob, name: str, complete: bool) -> None:
    job.begin()
    if complete:
        job.answer()
        job.finalise()
    lease = Lease(open_store(job.output), print)
    with (
        lease.acquire(),
        Heartbeat(open_store(job.output), JobProgress(job.spec(), 10, 0), lambda: None, print).beating(),
    ):
        pass
    path = Path(job.output, "_magbatch", name)
    whole = json.loads(path.read_text())
    for number, field in enumerate(sorted(whole)):
        path.write_text(json.dumps(whole | {field: ODD_VALUES[(number + complete) % len(ODD_VALUES)]}))
        assert command("status", job.output).exit_code == 0, field
    path.write_text(json.dumps(whole | {"at": 1e308, "pid": "abc", "cost": "x"}))
    assert command("verify", job.output).exit_code == (0 if complete else 1)
    path.write_text(json.dumps({"version": 1, "at": whole["at"]}))
    assert command("status", job.output).exit_code == 0
    path.write_bytes(b"[" * 100_000)
    assert command("status", job.output).exit_code == 0


def test_a_plan_of_more_rows_than_anybody_has_is_damaged(job: SmallJob) -> None:
    job.begin()
    path = Path(job.output, "_magbatch/plan.parquet")
    table = pq.read_table(path)
    place = table.schema.get_field_index("rows")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array([10**12] * table.num_rows)), path)
    assert "plan.parquet is damaged" in refused(command("status", job.output))
    assert "plan.parquet: cannot be read" in command("verify", job.output).stdout
