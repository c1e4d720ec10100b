"""Jobs sent to a running cluster through Ray's job API: a head node of its own, as `ray start --head` gives it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from magbatch_cli import JobFiles, committed, free_port, journal, magbatch, read, wait_until

CLUSTER = """
import os, sys
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
from ray.cluster_utils import Cluster
port = int(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 3, "include_dashboard": True, "dashboard_port": port, "dashboard_agent_listen_port": 0})
print("ready", flush=True)
sys.stdin.read()  # until the test is over
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The dashboard of a cluster of one node."""
    port = free_port()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with tempfile.TemporaryDirectory() as elsewhere, subprocess.Popen(  # the package must travel
        [sys.executable, "-c", CLUSTER, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PATH": path}, cwd=elsewhere,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert any(line.strip() == "ready" for line in process.stdout)
        yield f"http://127.0.0.1:{port}"
        process.stdin.close()
        process.wait(60)


def test_submit_follow_cancel_and_resume(job: JobFiles, address: str) -> None:
    job.write_input(80)
    job.engine |= {"token_s": 0.04, "max_num_seqs": 4}
    sent = json.loads(magbatch("submit", job.write_spec(), "--address", address, "--json").stdout)
    wait_until(lambda: committed(job.output) > 4, "rows are committed")

    twice = magbatch("submit", str(job.spec), "--address", address)
    assert twice.returncode == 3
    assert sent["id"] in twice.stderr, "one job at a time works on an output"
    (listed,) = json.loads(magbatch("jobs", "--address", address, "--json").stdout)
    assert (listed["id"], listed["state"], listed["output"]) == (sent["id"], "running", str(job.output))
    standing = json.loads(magbatch("status", sent["id"], "--address", address, "--json").stdout)
    assert standing["status"]["planned"] == 80

    ended = magbatch("cancel", sent["id"], "--address", address)
    assert ended.returncode == 0, ended.stderr
    assert f"{sent['id']}: stopped" in ended.stdout
    said = magbatch("logs", sent["id"], "--address", address).stdout
    assert "every finished row is committed" in said
    done, asked = {row["row_id"] for row in read(job.output)}, journal(job.journal)
    assert 4 < len(done) < 80

    again = json.loads(magbatch("resume", sent["id"], "--address", address, "--json").stdout)
    followed = magbatch("logs", "-f", again["id"], "--address", address)
    assert followed.returncode == 0, followed.stdout
    assert "80 of 80 rows answered" in followed.stdout
    assert {row["id"] for row in read(job.output)} == {f"id-{i}" for i in range(80)}
    counts = journal(job.journal)
    assert all(counts[row_id] == asked[row_id] for row_id in done), "a committed row was asked again"
    assert magbatch("verify", str(job.output)).returncode == 0
    no_more = magbatch("cancel", again["id"], "--address", address)
    assert "had ended already: succeeded" in no_more.stdout


def test_what_is_wrong_is_one_clear_line(job: JobFiles, address: str) -> None:
    job.write_input(3)
    spec = job.write_spec()
    nobody = f"http://127.0.0.1:{free_port()}"
    for arguments, code, said in (
        (("submit", spec, "--address", nobody), 3, f"{nobody} cannot be reached"),
        (("submit", spec, "--address", "ray://head:10001"), 3, "http://head:8265"),
        (("cancel", "no-such-job", "--address", address), 3, "knows no job no-such-job"),
        (("submit", spec, "--address", address, "--set", "sampling.top_p=2"), 2, "sampling.top_p"),
        (
            (
                "submit",
                spec,
                "--address",
                address,
                "--set",
                "input.incremental=true",
                "--set",
                "schedule={cron: 0 6 * * *}",
            ),
            2,
            "such a job runs by its schedule",
        ),
    ):
        failed = magbatch(*arguments)
        assert failed.returncode == code, failed.stdout + failed.stderr
        assert said in failed.stderr
        assert "Traceback" not in failed.stderr
