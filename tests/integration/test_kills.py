"""kill -9 of whatever a job is made of, at seeded moments; then the exact rows, and who was asked how often.

Replicas and readers (11 points), the driver (6), a whole node (3), a replica with a notice (1), and a driver that
comes back as a zombie. The engine's own process is killed in test_vllm.py, the object store in test_rgw.py, a retry
in test_retry.py, the interpreter's signals are in test_jobs.py.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.magbatch_cli import Bill, JobFiles, alive, committed, descendants, magbatch, named, read, start, wait_until


def check_rows(job: JobFiles, rows: int, failed: set[str]) -> None:
    """Every planned row once: as an answer, or as a dead letter."""
    answered = [row["id"] for row in read(job.output)]
    letters = [row["id"] for row in read(job.output, "errors")]
    assert sorted(answered + letters) == sorted(f"id-{index}" for index in range(rows))
    assert set(letters) == failed
    verified = magbatch("verify", str(job.output))
    assert verified.returncode == 0, verified.stdout


def with_bad_rows(job: JobFiles, rows: int) -> set[str]:
    """An input of which some rows have no question; returns their ids."""
    bad = set(range(5, rows, 41))
    job.write_input(rows, question=[None if index in bad else f"What is {index}?" for index in range(rows)])
    return {f"id-{index}" for index in bad}


# Reading that takes its time: tens of milliseconds of CPU a row.
SLOW_TEMPLATE = "{% for i in range(400) %}{% for j in range(1000) %}{% endfor %}{% endfor %}{{ question }}"


def moments(seed: int, count: int, rows: int) -> list[int]:
    """Seeded numbers of committed rows at which something is killed."""
    return sorted(random.Random(seed).sample(range(1, int(0.8 * rows)), count))


@pytest.mark.fire
def test_replicas_and_readers_are_killed_again_and_again(job: JobFiles) -> None:
    rows = 900
    failed = with_bad_rows(job, rows)
    job.engine |= {"token_s": 0.02, "max_num_seqs": 16}
    spec = job.write_spec(
        replicas={"gpus": 0, "min": 2, "max": 2, "cpus": 0.5},
        prompt={"template": SLOW_TEMPLATE},
        input={"path": str(job.input), "columns": {"id": "id", "prompt": "question"}, "shard_rows": 8},
    )
    process = start("run", spec, log=job.folder / "log")
    bill = Bill(job)
    chance = random.Random(4)

    def kill_one(name: str) -> bool:
        """kill -9 of a worker of Ray that runs something of this name now; whether there was one."""
        found = named(descendants(process), name)
        if found:
            bill.note()
            chance.choice(found).kill()
        return bool(found)

    for _ in range(3):  # reading runs ahead: later there is nobody to kill
        wait_until(lambda: process.poll() is not None or kill_one("ray::Read"), "a reader")
    for moment in moments(20261123, 8, rows):
        wait_until(lambda: committed(job.output) >= moment or process.poll() is not None, f"{moment} rows")  # noqa: B023
        wait_until(lambda: process.poll() is not None or kill_one("MapWorker"), "a replica")
        assert process.poll() is None, "the job was over before it was killed"
    assert process.wait(400) == 0, (job.folder / "log").read_text()
    bill.check()
    check_rows(job, rows, failed)


@pytest.mark.fire
def test_the_driver_is_killed_again_and_again(job: JobFiles) -> None:
    rows = 300
    failed = with_bad_rows(job, rows)
    job.engine |= {"token_s": 0.02, "max_num_seqs": 12}
    spec = job.write_spec()
    bill = Bill(job)
    for number, moment in enumerate(moments(7, 6, rows)):
        process = start("run", spec, log=job.folder / "log")
        wait_until(lambda: committed(job.output) >= moment or process.poll() is not None, f"{moment} rows")  # noqa: B023
        family = descendants(process)
        process.kill()
        process.wait()
        if number % 2:  # else the next run meets what the dead one's replicas still commit
            wait_until(lambda: not alive(family), "the killed driver's processes to end")  # noqa: B023
        bill.note()
    last = magbatch("run", spec)
    assert last.returncode == 0, last.stderr
    assert "waiting" not in last.stderr, "the lease of a killed run on the same machine does not hinder"
    bill.check()
    check_rows(job, rows, failed)


CLUSTER = """
import os, sys
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=2, resources={"spot": 4})
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "remove":
        cluster.remove_node(node, allow_graceful=False)
    elif line.strip() == "add":
        node = cluster.add_node(num_cpus=2, resources={"spot": 4})
    elif line.strip() == "pid":
        print(node.all_processes["raylet"][0].process.pid, flush=True)
        continue
    print("done", flush=True)
cluster.shutdown()
"""


class Nodes:
    """A Ray cluster whose second node, the one with room for replicas, comes and goes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = next(line.strip() for line in self._process.stdout if line.strip().rpartition(":")[2].isdigit())

    def tell(self, command: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(90)
        self._process.stdout.close()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.close()


def replicas_below(pid: int) -> list[psutil.Process]:
    """The replicas below a process."""
    return named(psutil.Process(pid).children(recursive=True), "MapWorker")


@pytest.mark.fire
def test_a_node_is_taken_away_again_and_again_and_another_comes(job: JobFiles, nodes: Nodes) -> None:
    """The pool shrinks to nothing with its node, and grows again with the next; one of its two places is left free."""
    rows = 300
    failed = with_bad_rows(job, rows)
    job.engine |= {"token_s": 0.02, "max_num_seqs": 12}
    # One CPU is on the head, for reading; a replica of two fits on the other node alone.
    spec = job.write_spec(replicas={"gpus": 0, "min": 1, "max": 2, "cpus": 2})
    process = start("run", spec, log=job.folder / "log", RAY_ADDRESS=nodes.address)
    bill = Bill(job)
    for moment in moments(99, 3, rows):
        wait_until(lambda: committed(job.output) >= moment or process.poll() is not None, f"{moment} rows")  # noqa: B023
        assert process.poll() is None, (job.folder / "log").read_text()
        node = int(nodes.tell("pid"))  # moments may be near each other: the replica before may have committed for both
        wait_until(lambda: replicas_below(node) or process.poll() is not None, "a replica on the node")  # noqa: B023
        assert process.poll() is None, (job.folder / "log").read_text()
        bill.note()
        assert nodes.tell("remove") == "done"
        assert nodes.tell("add") == "done"
    assert process.wait(400) == 0, (job.folder / "log").read_text()
    bill.check()
    check_rows(job, rows, failed)


def test_a_replica_that_is_told_to_go_commits_what_is_finished_first(job: JobFiles) -> None:
    """SIGTERM, and SIGKILL a moment later, in a job that would commit nothing before its end."""
    rows = 200
    failed = with_bad_rows(job, rows)
    job.engine |= {"token_s": 0.02, "max_num_seqs": 8}
    spec = job.write_spec(
        input={"path": str(job.input), "columns": {"id": "id", "prompt": "question"}, "shard_rows": rows},
        output={"path": str(job.output), "commit_interval_s": 3600, "commit_rows": 100_000},
    )
    process = start("run", spec, log=job.folder / "log")
    wait_until(lambda: len(Bill(job)._asked()) > 40 or process.poll() is not None, "rows in the engine")
    (replica,) = named(descendants(process), "MapWorker")
    assert committed(job.output) == 0
    replica.send_signal(signal.SIGTERM)
    wait_until(lambda: committed(job.output) > 20, "the finished rows", seconds=25)
    if replica.is_running():
        replica.kill()
    bill = Bill(job)
    bill.note()
    assert process.wait(400) == 0, (job.folder / "log").read_text()
    assert "a node is about to go" in (job.folder / "log").read_text()
    bill.check()
    check_rows(job, rows, failed)


@pytest.mark.fire
def test_two_runs_at_once_are_one_too_many(job: JobFiles) -> None:
    rows = 120
    failed = with_bad_rows(job, rows)
    job.engine |= {"token_s": 0.03, "max_num_seqs": 8}
    spec = job.write_spec()
    first = start("run", spec, log=job.folder / "log")
    wait_until(lambda: committed(job.output) > 0 or first.poll() is not None, "a first commit")
    second = magbatch("run", spec)
    assert second.returncode == 3
    assert f"another run is working on it (host {os.uname().nodename}, process {first.pid})" in second.stderr
    assert "Traceback" not in second.stderr
    assert first.wait(300) == 0, (job.folder / "log").read_text()
    check_rows(job, rows, failed)
    assert len(Path(job.journal).read_text().splitlines()) == rows - len(failed), "rows were paid for twice"


@pytest.mark.fire
def test_a_zombie_is_taken_over_and_damages_nothing(job: JobFiles) -> None:
    """A driver that stands still, as on a machine without network, while its replicas work on; as if elsewhere."""
    rows = 400
    failed = with_bad_rows(job, rows)
    job.engine |= {"token_s": 0.05, "max_num_seqs": 8}
    spec = job.write_spec()
    zombie = start("run", spec, log=job.folder / "log")
    wait_until(lambda: committed(job.output) > 0 or zombie.poll() is not None, "a first commit")
    zombie.send_signal(signal.SIGSTOP)
    (lease,) = (job.output / "_magbatch").glob("lease-*.json")
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"place": "elsewhere"}))
    second = start("run", spec, log=job.folder / "second")
    said = job.folder / "second"
    wait_until(lambda: "its heartbeat" in said.read_text() or second.poll() is not None, "the second run's wait")
    wait_until(lambda: "rows " in said.read_text() or second.poll() is not None, "the second run's work")
    # Processes that Ray starts again end as well.
    wait_until(lambda: not alive(replicas_below(zombie.pid)), "the end of the zombie's replicas")
    zombie.send_signal(signal.SIGCONT)
    assert zombie.wait(120) == 3, (job.folder / "log").read_text()
    assert "has taken" in (job.folder / "log").read_text()
    assert second.wait(400) == 0, said.read_text()
    check_rows(job, rows, failed)


@pytest.mark.fire
def test_an_engine_that_never_starts_ends_the_job_with_its_last_words(job: JobFiles) -> None:
    job.write_input(10)
    job.engine |= {"start_s": 3600, "start_says": "waiting for a device that nobody has"}
    failed = magbatch("run", job.write_spec(replicas={"gpus": 0, "start_timeout_s": 5}))
    assert failed.returncode == 2
    assert "the engine did not start within 5 s (replicas.start_timeout_s)" in failed.stderr
    assert "waiting for a device that nobody has" in failed.stderr
    assert "Traceback" not in failed.stderr
