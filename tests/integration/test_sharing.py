"""Two jobs on one cluster with two kinds of GPU: the best node is taken first, and who has priority is served first."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.magbatch_cli import Bill, JobFiles, committed, magbatch, read, start, wait_until

CLUSTER = """
import os, sys
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 0, "include_dashboard": False})
for kind in ("A100", "H100"):
    cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=100_000_000, labels={"ray.io/accelerator-type": kind})
print("at", cluster.address, flush=True)
sys.stdin.read()  # until the test is over
cluster.shutdown()
"""
REPLICAS = {"min": 0, "gpus": 1, "cpus": 0.5, "prefer": [{"accelerator": "H100"}, {"accelerator": "A100"}]}


@pytest.fixture
def address() -> Iterator[str]:
    """Value for RAY_ADDRESS: a head without a GPU, an A100 and an H100, by their labels."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"MAGBATCH_MAX_PRIORITY": "3"},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("at "))
        process.stdin.close()
        process.wait(60)


def workers(journal: Path) -> list[int]:
    """The processes that have asked an engine for a row, in the order in which they came."""
    lines = journal.read_text().splitlines() if journal.exists() else []
    return list(dict.fromkeys(int(line.split()[1]) for line in lines))


def test_who_has_priority_is_given_a_replica_and_the_other_goes_on(tmp_path: Path, address: str) -> None:
    low, high = (JobFiles(tmp_path / name) for name in ("low", "high"))
    for job, rows in ((low, 400), (high, 12)):
        job.folder.mkdir()
        job.write_input(rows)
        job.engine |= {"max_num_seqs": 4, "token_s": 0.03}
    log = low.folder / "log"
    process = start("run", low.write_spec(replicas=REPLICAS | {"max": 2}), log=log, RAY_ADDRESS=address)
    try:
        wait_until(lambda: len(workers(low.journal)) == 1, f"a replica: {log.read_text()}")
        node = psutil.Process(workers(low.journal)[0]).parent()
        assert node is not None
        assert "H100" in " ".join(node.cmdline()), "the first of the nodes that it prefers"
        wait_until(lambda: len(workers(low.journal)) == 2, f"a second one on the other: {log.read_text()}")
        bill = Bill(low)
        bill.note()
        urgent = high.write_spec(replicas=REPLICAS | {"max": 1, "priority": 5})
        done = magbatch("run", urgent, "--json", RAY_ADDRESS=address)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["totals"]["answered"] == 12
        assert "replicas.priority 5: the cluster's owner allows 3 at most (MAGBATCH_MAX_PRIORITY)" in done.stderr
        assert process.poll() is None, "the other had to be at work all the while, or nothing was shown"
        assert "another job gets these devices" in log.read_text()
        bill.note()
        wait_until(lambda: process.poll() is not None, f"the end: {committed(low.output)} rows", 300)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0, log.read_text()
    assert sorted(row["id"] for row in read(low.output)) == sorted(f"id-{i}" for i in range(400))
    bill.check()
    assert magbatch("verify", str(low.output)).returncode == 0
