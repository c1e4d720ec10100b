"""Commands ended from outside give exit code 3 and a reason, and leave nothing behind."""

import json
import signal
import subprocess
import time

import psutil
import pytest
from support.magbatch_cli import JobFiles, alive, committed, descendants, magbatch, read, start, wait_until

GONE_S = 15.0


def begun(job: JobFiles) -> subprocess.Popen[bytes]:
    """A job that has committed its first rows."""
    job.write_input(2000)
    job.engine |= {"token_s": 0.02, "max_num_seqs": 16}
    process = start("run", job.write_spec(), log=job.folder / "log")
    wait_until(lambda: committed(job.output) > 0 or process.poll() is not None, "a first commit")
    return process


def gone(family: list[psutil.Process]) -> None:
    wait_until(lambda: not alive(family), "the end of all that the command had started", seconds=GONE_S)


@pytest.mark.parametrize("name", ["gcs_server", pytest.param("raylet", marks=pytest.mark.fire)])
def test_a_process_of_rays_that_dies_ends_the_run_with_its_name(job: JobFiles, name: str) -> None:
    process = begun(job)
    family = descendants(process)
    (victim,) = (one for one in family if one.name() == name)
    victim.kill()
    assert process.wait(30) == 3
    log = (job.folder / "log").read_text()
    assert f"magbatch: Ray's {name} (process {victim.pid}) was killed by SIGKILL" in log
    assert "Run the same command again to continue." in log
    assert alive(family) == []
    assert not (job.output / "_magbatch/manifest.json").exists()
    assert (job.output / "_magbatch/driver.log").exists()


def test_a_process_of_rays_that_dies_while_ray_starts_ends_the_run_with_its_name(job: JobFiles) -> None:
    job.write_input(20)
    process = start("run", job.write_spec(), log=job.folder / "log")
    found = list[psutil.Process]()

    def there() -> bool:
        found[:] = [one for one in descendants(process) if one.name() == "gcs_server"]
        return bool(found)

    wait_until(there, "Ray's start")
    time.sleep(0.6)  # it is seen by then
    found[0].kill()
    assert process.wait(60) == 3
    assert (
        f"magbatch: Ray's gcs_server (process {found[0].pid}) was killed by SIGKILL" in (job.folder / "log").read_text()
    )
    assert alive(descendants(process) + found) == []


def test_a_killed_command_leaves_nothing_and_is_gone_on_with(job: JobFiles) -> None:
    process = begun(job)
    family = descendants(process)
    process.kill()
    process.wait()
    gone(family)
    done = {row["row_id"] for row in read(job.output)}

    process = start("run", str(job.spec), log=job.folder / "log")
    wait_until(lambda: committed(job.output) > len(done) or process.poll() is not None, "another commit")
    family = descendants(process)
    driver = psutil.Process(process.pid).children()[0].children()[0]
    driver.kill()
    assert process.wait(30) == 3
    assert f"the job's driver (process {driver.pid}) was killed by SIGKILL" in (job.folder / "log").read_text()
    assert alive(family) == []

    last = magbatch("run", str(job.spec), "--set", "model.engine_args.max_num_seqs=512")
    assert last.returncode == 0, last.stderr
    assert magbatch("verify", str(job.output)).returncode == 0


@pytest.mark.parametrize("command", ["run", pytest.param("retry", marks=pytest.mark.fire)])
def test_sigterm_while_ray_starts_ends_the_command_with_3(job: JobFiles, command: str) -> None:
    job.write_input(20)
    if command == "retry":
        job.engine["script"] = [{"contains": "What is 7?", "do": "reject"}]
    spec = job.write_spec()
    args = ["run", spec]
    if command == "retry":
        assert magbatch(*args).returncode == 0
        args = ["retry", str(job.output)]
    for delay_s in (0.0, 0.5, 1.5):
        process = start(*args, log=job.folder / "log")
        wait_until(lambda: any(one.name() == "gcs_server" for one in descendants(process)), "Ray's start")  # noqa: B023
        time.sleep(delay_s)
        family = descendants(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 3
        log = (job.folder / "log").read_text()
        assert "magbatch: interrupted" in log or "magbatch: stopped" in log
        assert "Traceback" not in log
        assert alive(family) == []
    done = magbatch(*args, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(job.output)
