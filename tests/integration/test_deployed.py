"""The command in the manifests rendered for a platform runs on a real cluster: S3 in, S3 out."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.magbatch_cli import COMMAND, JobFiles, free_port, magbatch

from magbatch.deploy import SPEC_PATH
from magbatch.storage.s3 import s3_client

RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; main()"]
END_S = 240


def ray(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Ray's own command."""
    return subprocess.run(
        [*RAY, *arguments], capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment
    )


@pytest.fixture
def spec(job: JobFiles, s3: str) -> str:
    """A job of 12 rows in object storage, on the scripted engine."""
    table = pa.table({"id": [f"id-{i}" for i in range(12)], "question": [f"What is {i}?" for i in range(12)]})
    data = io.BytesIO()
    pq.write_table(table, data)
    s3_client().put_object(Bucket=s3.removeprefix("s3://"), Key="in/a.parquet", Body=data.getvalue())
    return job.write_spec(
        input={"path": f"{s3}/in/", "incremental": True},
        output={"path": f"{s3}/out"},
        schedule={"cron": "0 6 * * *", "timezone": "Europe/Paris"},
        metrics={"enabled": False},
    )


def told(spec: str, target: str, folder: Path, *overrides: str) -> tuple[str, dict[str, Any]]:
    """The command that the manifests of a target give, on a spec where this machine has it, and its environment."""
    image = ("--image", "registry.example/magbatch:0.2.0-cpu")
    done = magbatch("deploy", "render", spec, "--target", target, "--out", str(folder), *image, *overrides)
    assert done.returncode == 0, done.stderr
    manifests = [yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")]
    (job,) = (one["spec"] for one in manifests if one.get("apiVersion") == "ray.io/v1")
    (data,) = (one["data"] for one in manifests if one.get("kind") == "ConfigMap")
    job = job.get("jobTemplate", job)
    for name, text in data.items():
        (folder / name).write_text(text)
    entrypoint = job["entrypoint"].replace(str(Path(SPEC_PATH).parent), str(folder))
    assert entrypoint != job["entrypoint"]
    return entrypoint, yaml.safe_load(job["runtimeEnvYAML"])


def test_the_entrypoints_of_the_manifests_run(spec: str, s3: str, tmp_path: Path) -> None:
    tick, environment = told(spec, "cron", tmp_path / "cron")
    once, _ = told(
        spec, "kuberay", tmp_path / "kuberay", "--set", f"output.path={s3}/once", "--set", "input.incremental=false"
    )
    path = os.pathsep.join([str(Path(COMMAND[0]).parent), os.environ["PATH"]])
    # As KubeRay has it: a token for each of its pods, and no CPUs on the head.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    dashboard = free_port()
    script = f"""
import os, sys
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 0, "include_dashboard": True,
    "dashboard_port": {dashboard}, "dashboard_agent_listen_port": 0}})
cluster.add_node(num_cpus=5, dashboard_agent_listen_port=0)
print("ready", flush=True)
sys.stdin.read()  # until the test is over
cluster.shutdown()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | token | {"PATH": path},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert any(line.strip() == "ready" for line in process.stdout)
        address = f"http://127.0.0.1:{dashboard}"
        stranger = ray("job", "list", "--address", address, RAY_AUTH_MODE="disabled")
        assert stranger.returncode != 0, stranger.stdout
        assert "Missing authentication token" in stranger.stderr, stranger.stderr
        for name, entrypoint in (("tick", tick), ("once", once)):
            sent = ray(
                "job", "submit", "--address", address, "--no-wait", "--submission-id", name,
                "--runtime-env-json", json.dumps(environment), "--", *entrypoint.split(), **token,
            )  # fmt: skip
            assert sent.returncode == 0, sent.stdout + sent.stderr
        deadline = time.monotonic() + END_S
        for name in ("tick", "once"):
            while "succeeded" not in (said := ray("job", "status", "--address", address, name, **token).stdout):
                assert "failed" not in said, ray("job", "logs", "--address", address, name, **token).stdout
                assert time.monotonic() < deadline, said
                time.sleep(1)
        process.stdin.close()
        process.wait(60)
    keys = [one["Key"] for one in s3_client().list_objects_v2(Bucket=s3.removeprefix("s3://"))["Contents"]]
    (run,) = {key.split("/")[2] for key in keys if key.startswith("out/runs/")}
    for output in (f"{s3}/out/runs/{run}", f"{s3}/once"):
        proof = magbatch("verify", output)
        assert (proof.returncode, proof.stdout.splitlines()[0]) == (0, "planned 12 = 12 answered + 0 dead letters")
