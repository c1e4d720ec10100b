"""An error of a command is one clear message, or one JSON document, and repeats no secret."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import command, refused, spec_file
from support.small_job import SmallJob

import magbatch
from magbatch.ledger.lease import Lease


def test_an_error_for_a_program_is_a_document(job: SmallJob) -> None:
    result = command("plan", spec_file(job), "--set", "sampling.top_p=2", "--json")
    assert result.exit_code == 2
    assert result.stderr == ""
    error = json.loads(result.stdout)
    assert (error["error"], error["exit_code"]) == ("SpecError", 2)
    assert "sampling.top_p" in error["message"]


@pytest.mark.parametrize(
    "item",
    [
        "model.engine_args={hf_token: [S3CR1}",
        "metrics.port=hf_S3CR1",
        "input.path=https://h/a?sig=S3CR1",
        "model.engine_args.api_key=[S3CR1",
    ],
)
def test_an_error_repeats_no_secret(job: SmallJob, item: str) -> None:
    path = spec_file(job)
    assert "S3CR1" not in refused(command("plan", path, "--set", item))
    assert "S3CR1" not in json.loads(command("plan", path, "--set", item, "--json").stdout)["message"]


def test_an_address_with_a_secret_is_not_repeated() -> None:
    assert "S3CR1" not in refused(command("jobs", "--address", "http://127.0.0.1:1/?token=S3CR1"))


def test_a_run_of_a_job_that_another_has_says_who_and_what_to_do(job: SmallJob) -> None:
    path = spec_file(job)
    job.begin()
    with Lease(job.ledger.store, print).acquire():
        result = command("run", path)
    assert result.exit_code == 3
    assert f"{socket.gethostname()}, process {os.getpid()}, since 20" in result.stderr
    assert f"magbatch status {job.output}" in result.stderr
    assert "Run the same command again" not in result.stderr


def test_a_platforms_signal_ends_any_command_as_an_interrupt() -> None:
    """Here `status`, while it waits for a store that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "magbatch", "status", "s3://bucket/out"],
            env=os.environ | {"AWS_ENDPOINT_URL": endpoint}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with silent.accept()[0]:
            process.terminate()
            _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert said.splitlines() == [
        "magbatch: interrupted; committed rows stay", "Run the same command again to continue.",
    ]  # fmt: skip


@pytest.mark.parametrize("code", ["'no licence'", "0"])
def test_a_library_that_ends_the_process_is_a_defect_and_not_a_job_that_is_complete(tmp_path: Path, code: str) -> None:
    (tmp_path / "boto3.py").write_text(f"import sys\nsys.exit({code})\n")
    done = subprocess.run(
        [sys.executable, "-m", "magbatch", "status", "s3://bucket/out"], check=False, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.startswith(f"magbatch: SystemExit: a library ended the command, saying '{code.strip(chr(39))}'")
    assert "boto3.py" in done.stderr


@pytest.mark.parametrize("verb", ["run", "verify"])
def test_a_working_directory_that_is_gone_is_a_mistake(tmp_path: Path, verb: str) -> None:
    (tmp_path / "here").mkdir()
    program = (
        f"import os; os.rmdir({str(tmp_path / 'here')!r}); import runpy, sys; sys.argv = ['magbatch', {verb!r}, 'x']; "
    )
    program += "runpy.run_module('magbatch', run_name='__main__')"
    path = {"PYTHONPATH": str(Path(magbatch.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path / "here", env=os.environ | path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("magbatch: Working directory: the folder"), done.stderr
