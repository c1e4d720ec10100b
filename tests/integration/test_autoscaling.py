"""Nodes come for a job that waits and go when it is done, and one that dies takes no row with it."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.autoscaling_cluster import AutoscalingCluster, autoscaling_cluster
from support.magbatch_cli import JobFiles, committed, magbatch, read, start, wait_until

ROWS = 500


@pytest.fixture
def cluster() -> Iterator[AutoscalingCluster]:
    """Up to four nodes of one GPU, twice what a job may have; none yet."""
    folder = Path(tempfile.mkdtemp(prefix="mb-", dir="/tmp"))
    try:
        with autoscaling_cluster(folder, max_workers=4) as found:
            yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_nodes_come_and_go_and_a_killed_one_costs_no_row(job: JobFiles, cluster: AutoscalingCluster) -> None:
    job.write_input(ROWS)
    job.engine |= {"max_num_seqs": 4, "token_s": 0.01}
    spec = job.write_spec(replicas={"min": 0, "max": 2, "gpus": 1, "cpus": 0.5})
    assert cluster.workers() == []
    log = job.folder / "log"
    process = start("run", spec, log=log, RAY_ADDRESS=cluster.address)
    try:
        wait_until(lambda: committed(job.output) > 0, f"the first rows: {log.read_text()}", 180)
        first = cluster.workers()
        assert first, "a replica of one GPU works on a node that was added"
        first[0].kill()
        most = [0]

        def over() -> bool:
            most.append(len(cluster.workers()))
            return process.poll() is not None

        wait_until(over, "the end of the job", 300)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0, log.read_text()
    assert max(most) <= 2, "more nodes than replicas"
    assert sorted(row["id"] for row in read(job.output)) == sorted(f"id-{i}" for i in range(ROWS))
    assert magbatch("verify", str(job.output)).returncode == 0
    wait_until(lambda: not cluster.workers(), "idle nodes go", 120)
