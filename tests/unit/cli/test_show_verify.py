"""`verify` prints the proof, or each problem and the command that repairs it."""

import json
from pathlib import Path

import pytest
from support.book import rewrite_manifest
from support.commands import command, spec_file
from support.small_job import SmallJob

from magbatch.errors import LeaseError
from magbatch.jobs.compact import merge_objects
from magbatch.ledger.lease import Lease
from magbatch.storage import open_store


def test_verify_says_what_has_no_checksum_in_an_output_of_the_version_before(job: SmallJob) -> None:
    job.answer()
    job.finalise()
    report = json.loads(job.ledger.store.read("_magbatch/report.json"))
    report.pop("letters", None)  # which no version before has written
    job.ledger.store.write("_magbatch/report.json", json.dumps(report).encode())
    rewrite_manifest(job.ledger, version=1, files=())
    found = command("verify", job.output)
    assert (found.exit_code, found.stdout.splitlines()[2]) == (
        0, "  _magbatch/manifest.json is of an older version: it has no checksums of _magbatch/spec.yaml and "
        "_magbatch/report.json",
    )  # fmt: skip


def test_verify_proves_a_complete_job(tmp_path: Path) -> None:
    job = SmallJob(tmp_path)
    job.ask(5, question=["What?", None, "Who?", "Why?", "When?"])
    job.answer()
    job.finalise()
    result = command("verify", job.output)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "planned 5 = 4 answered + 1 dead letter"
    assert "every row once" in result.stdout
    counts = json.loads(command("verify", job.output, "--json").stdout)
    assert counts == {
        "planned": 5, "answered": 4, "failed": 1, "objects": len(job.objects()) + len(job.objects("errors")),
        "complete": True, "verified": True, "problems": [],
    }  # fmt: skip


def test_verify_lists_what_is_wrong_and_ends_with_1(job: SmallJob) -> None:
    job.answer()
    job.finalise()
    name = job.objects()[0]
    job.ledger.store.delete(name)
    result = command("verify", job.output)
    assert result.exit_code == 1
    problems = [line.strip() for line in result.stdout.splitlines() if line.startswith("  ")]
    assert result.stdout.splitlines()[0] == f"{job.output}: {len(problems)} problems"
    assert any(name in problem for problem in problems)
    shown = command("verify", job.output, "--json")
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["verified"] is False
    assert json.loads(shown.stdout)["problems"] == problems


def test_verify_of_an_unfinished_job_sums_up_and_ends_with_1(job: SmallJob) -> None:
    job.answer()
    job.ledger.store.delete(job.objects()[0])
    path = spec_file(job)
    result = command("verify", path)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{job.output}: not complete: 6 of 10 rows are done",
        "  no problem in the objects so far: 2 objects, 6 answered, 0 failed",
        "  the job is not running (not complete)",
        f"Next: magbatch run {path}",
    ]
    assert json.loads(command("verify", job.output, "--json").stdout)["problems"] == [
        "no manifest: the job is not complete"
    ]


def test_verify_names_the_command_that_mends_a_job(job: SmallJob) -> None:
    """A compaction that is under way, or was interrupted; a report that is gone: no row is to be paid for again."""
    job.set("input", shard_rows=4)
    job.answer()
    job.finalise()

    def confirm() -> None:
        found = command("verify", job.output)
        assert found.exit_code == 1
        assert "  a compaction of it is under way: verify again when it has ended" in found.stdout.splitlines()
        assert found.stdout.splitlines()[-1] == f"Next: magbatch status {job.output}"
        raise LeaseError("ended here")

    lease = Lease(open_store(job.output), print, command=("compact", "--target-mb", "1"))
    with pytest.raises(LeaseError, match="ended here"), lease.acquire():
        merge_objects(job.ledger, 10**6, confirm)
    found = command("verify", job.output)
    assert (found.exit_code, found.stdout.splitlines()[-1]) == (
        1, f"Next: magbatch compact {job.output} --target-mb 1",
    )  # fmt: skip
    assert command("compact", job.output, "--target-mb", "1").exit_code == 0
    assert command("verify", job.output).exit_code == 0
    Path(job.output, "_magbatch/report.json").unlink()
    found = command("verify", job.output)
    *_, following = found.stdout.splitlines()
    assert (found.exit_code, following) == (1, f"Next: magbatch run {job.output}/_magbatch/spec.yaml")
    assert command("run", f"{job.output}/_magbatch/spec.yaml").exit_code == 0
    assert command("verify", job.output).exit_code == 0
