"""A job that version 0.1.0 began is finished by this version."""

from pathlib import Path

from support.magbatch_cli import magbatch
from support.older_outputs import BUCKET, ROWS, put_older_outputs

from magbatch.storage import open_store


def test_a_stopped_job_of_the_version_before_is_finished(s3_endpoint: str, tmp_path: Path) -> None:
    put_older_outputs(tmp_path)
    store = open_store(f"s3://{BUCKET}/half")
    before = {item.name for item in store.list("results/")}
    done = magbatch("run", str(tmp_path / "half.yaml"))
    assert done.returncode == 0, done.stderr
    assert f"6 of {ROWS} rows" in " ".join(done.stderr.split())
    assert before <= {item.name for item in store.list("results/")}, "finished rows were not paid for again"
    verified = magbatch("verify", f"s3://{BUCKET}/half")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert str(ROWS) in verified.stdout
