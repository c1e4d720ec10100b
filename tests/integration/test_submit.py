"""Jobs sent to a running cluster through Ray's job API: a head node of its own, as `ray start --head` gives it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from support.magbatch_cli import (
    JobFiles,
    alive,
    committed,
    descendants,
    free_port,
    journal,
    magbatch,
    read,
    wait_until,
)


@contextmanager
def head(home: Path, token: str | None) -> Iterator[tuple[str, str]]:
    """A real `ray start --head`: gives the address of its dashboard, and that for RAY_ADDRESS.

    Args:
        home: A home directory of its own: Ray looks for a token there.
        token: Token of the cluster; None if it needs none.
    """
    port, dashboard = free_port(), free_port()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "HOME": str(home), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "PYTHONPATH"):  # the package must travel
        env.pop(name, None)
    if token is not None:
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text(token)
    command = [
        *("ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=3", f"--port={port}"),
        *(f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"),
        f"--ray-client-server-port={free_port()}",
    ]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=home, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{dashboard}"

        def answers() -> bool:
            assert process.poll() is None, (home / "log").read_text()
            with suppress(httpx.HTTPError):
                # Without a token it is known to be up by its refusal.
                return httpx.get(f"{address}/api/jobs/", trust_env=False).status_code == (401 if token else 200)
            return False

        wait_until(answers, "Ray's job API")
        yield address, f"127.0.0.1:{port}"
    finally:
        left = descendants(process)
        for one in left:
            one.kill()
        process.kill()
        process.wait(60)
        wait_until(lambda: not alive(left), "the end of Ray's processes")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard of a cluster of one node, which asks nobody for a token."""
    with head(tmp_path_factory.mktemp("head"), None) as (dashboard, _):
        yield dashboard


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
    status = json.loads(magbatch("status", sent["id"], "--address", address, "--json").stdout)
    assert status["status"]["planned"] == 80

    ended = magbatch("cancel", sent["id"], "--address", address)
    assert ended.returncode == 0, ended.stderr
    assert f"{sent['id']}: stopped" in ended.stdout
    said = magbatch("logs", sent["id"], "--address", address).stdout
    assert "every finished row is committed" in said
    done, asked = {row["row_id"] for row in read(job.output)}, journal(job.journal)
    assert 4 < len(done) < 80

    progress = job.output / "_magbatch/progress.json"
    record = json.loads(progress.read_text())
    progress.write_text(json.dumps(record | {"versions": record["versions"] | {"transformers": "0.0.1"}}))
    again = json.loads(magbatch("resume", sent["id"], "--address", address, "--json").stdout)
    followed = magbatch("logs", "-f", again["id"], "--address", address)
    assert followed.returncode == 0, followed.stdout
    assert "package versions differ from those of the committed rows: transformers 0.0.1 -> " in followed.stdout
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
        (("submit", spec, "--address", nobody), 2, f"{nobody} cannot be reached"),
        (("jobs", "--address", nobody), 2, f"{nobody} cannot be reached"),
        (("status", "some-job", "--address", nobody), 2, f"{nobody} cannot be reached"),
        (("submit", spec, "--address", "ray://head:10001"), 2, "http://head:8265"),
        (("cancel", "no-such-job", "--address", address), 2, "job no-such-job is not known at"),
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
            "an incremental job is run by its schedule only",
        ),
    ):
        failed = magbatch(*arguments)
        assert failed.returncode == code, failed.stdout + failed.stderr
        assert said in failed.stderr
        assert "Traceback" not in failed.stderr
        assert "same command again" not in failed.stderr


def test_a_cluster_with_a_token_is_used_by_who_has_it(job: JobFiles, tmp_path_factory: pytest.TempPathFactory) -> None:
    token = "5e5a" * 16
    job.write_input(12)
    spec = job.write_spec()
    home = job.folder / "home"
    home.mkdir()
    kept = home / "token"
    kept.write_text(token)
    nothing = {"HOME": str(home), "RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": ""}
    wrong = nothing | {"RAY_AUTH_TOKEN": "of another cluster"}
    right = nothing | {"RAY_AUTH_TOKEN_PATH": str(kept)}
    with head(tmp_path_factory.mktemp("locked"), token) as (address, gcs):
        for env, said in (
            (nothing, "asks for a token, and none is set: set RAY_AUTH_TOKEN"),
            (wrong, "refuses the token of RAY_AUTH_TOKEN"),
        ):
            for arguments, ray_address in ((("submit", spec, "--address", address), ""), (("run", spec), gcs)):
                failed = magbatch(*arguments, **env, RAY_ADDRESS=ray_address)
                assert failed.returncode == 2, failed.stdout + failed.stderr
                assert said in failed.stderr
                assert "same command again" not in failed.stderr
                assert "Traceback" not in failed.stderr

        sent = json.loads(magbatch("submit", spec, "--address", address, "--json", **right).stdout)
        followed = magbatch("logs", "-f", sent["id"], "--address", address, **right)
        assert followed.returncode == 0, followed.stdout + followed.stderr
        assert "12 of 12 rows answered" in followed.stdout
        (listed,) = json.loads(magbatch("jobs", "--address", address, "--json", **right).stdout)
        assert (listed["id"], listed["state"]) == (sent["id"], "succeeded")
        status = json.loads(magbatch("status", sent["id"], "--address", address, "--json", **right).stdout)
        assert status["status"]["complete"] is True
        over = magbatch("cancel", sent["id"], "--address", address, **right)
        assert "had ended already: succeeded" in over.stdout
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text(token)
        output = str(job.folder / "by-address")
        done = magbatch("run", spec, "--set", f"output.path={output}", **nothing, RAY_ADDRESS=gcs)
        assert done.returncode == 0, done.stderr
        assert "12 of 12 rows answered" in done.stdout
        assert token not in (job.folder / "by-address/_magbatch/report.json").read_text()
