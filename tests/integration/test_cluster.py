"""A cluster that is there already (RAY_ADDRESS), and object storage at both ends."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
from support.magbatch_cli import JobFiles, free_port, magbatch, read

from magbatch.ledger.ledger import Ledger

CLUSTER = """
import os, sys, time
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "num_gpus": 4, "include_dashboard": False})
cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=100_000_000, labels={"ray.io/accelerator-type": "OLD"},
                 env_vars={"PYTHONPATH": os.pathsep.join([sys.argv[1], os.environ.get("PYTHONPATH", "")])})
print(cluster.address, flush=True)
sys.stdin.read()  # until the test is over
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray cluster: a node that says it has four GPUs, and one with another version of a package."""
    old = tmp_path_factory.mktemp("old")
    (old / "transformers-0.0.1.dist-info").mkdir()
    (old / "transformers-0.0.1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: transformers\nVersion: 0.0.1\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(old)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = next(line.strip() for line in process.stdout if line.strip().rpartition(":")[2].isdigit())
        yield address
        process.stdin.close()
        process.wait(60)


def test_replicas_of_two_gpus_are_placed_together(job: JobFiles, cluster: str) -> None:
    job.write_input(40)
    job.engine["token_s"] = 0.01
    done = magbatch("run", job.write_spec(replicas={"min": 2, "max": 2, "gpus": 2, "cpus": 0.5}), RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    assert {row["id"] for row in read(job.output)} == {f"id-{i}" for i in range(40)}
    assert magbatch("verify", str(job.output)).returncode == 0
    too_many = {"min": 1, "max": 1, "gpus": 1, "cpus": 0.5}
    again = magbatch("run", job.write_spec(replicas=too_many), RAY_ADDRESS=cluster)
    assert again.returncode == 0
    assert "complete already" in again.stdout, "how replicas are placed does not make another job"


def test_a_node_with_other_versions_takes_no_part(job: JobFiles, cluster: str) -> None:
    job.write_input(3)
    only_there = {"gpus": 1, "cpus": 0.5, "prefer": [{"accelerator": "OLD"}]}
    failed = magbatch("run", job.write_spec(replicas=only_there), RAY_ADDRESS=cluster)
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert " has transformers 0.0.1, node " in failed.stderr
    assert "give all nodes one image" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not list(job.output.glob("results/*.parquet"))


def test_an_unreachable_cluster_is_one_clear_line(job: JobFiles) -> None:
    job.write_input(3)
    failed = magbatch("run", job.write_spec(), RAY_ADDRESS=f"127.0.0.1:{free_port()}")
    assert failed.returncode == 2
    assert "RAY_ADDRESS=127.0.0.1" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "same command again" not in failed.stderr


@pytest.mark.fire  # test_deployed.py has S3 in and out on a cluster, test_storage_faults.py on a local Ray
def test_s3_in_and_out(job: JobFiles, s3: str, cluster: str) -> None:
    job.write_input(20, "a.parquet")
    job.write_input(20, "b.parquet")
    bucket, _, prefix = s3.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for path in sorted(job.input.iterdir()):
        client.upload_file(str(path), bucket, f"{prefix}/in/{path.name}".lstrip("/"))
    columns = {"id": "id", "prompt": "question"}
    spec = job.write_spec(input={"path": f"{s3}/in/", "columns": columns}, output={"path": f"{s3}/out"})
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    done = magbatch("run", spec, **environment)
    assert done.returncode == 0, done.stderr
    assert f"results: {s3}/out/results/*.parquet" in done.stdout
    ledger = Ledger(f"{s3}/out")
    rows = []
    for part in ledger.objects("results"):
        target = Path(job.folder / "part.parquet")
        target.write_bytes(ledger.store.read(str(part)))
        rows += pq.read_table(target).to_pylist()
    assert len({row["row_id"] for row in rows}) == len(rows) == 40
    assert magbatch("verify", f"{s3}/out", **environment).returncode == 0
    again = magbatch("run", spec, **environment)
    assert "complete already" in again.stdout
