"""A disk that is full, and one that may not be written, under whole jobs."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.magbatch_cli import Bill, JobFiles, committed, journal, magbatch, read, start, wait_until

DISK_KIB = 1024
ROWS = 160


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.fire
def test_a_full_disk_is_waited_out_and_every_row_is_there(job: JobFiles, small_disk: Path) -> None:
    job.write_input(ROWS)
    job.engine |= {"token_s": 0.01, "max_num_seqs": 8}
    job.output = small_disk / "out"
    spec = job.write_spec(output={"path": str(job.output), "commit_interval_s": 0.3})
    log = job.folder / "log"

    def run_until_it_is_full(*more: str) -> subprocess.Popen[bytes]:
        process = start("run", spec, *more, log=log)
        wait_until(lambda: committed(job.output) > 0 or process.poll() is not None, "a first commit")
        fill(small_disk / "ballast")
        return process

    short = run_until_it_is_full("--set", "output.patience_s=2")
    assert short.wait(120) == 3, log.read_text()
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("magbatch: ")]
    assert line.startswith(f"magbatch: {job.output}/")
    assert line.endswith("No space left on device")
    assert "Run the same command again to continue." in log.read_text()
    assert "Traceback" not in log.read_text()
    (small_disk / "ballast").unlink()

    done, bill = committed(job.output), Bill(job)
    assert done < ROWS
    bill.note()
    again = start("run", spec, log=log)
    wait_until(lambda: committed(job.output) > done or again.poll() is not None, "more commits")
    fill(small_disk / "ballast")
    wait_until(lambda: "storage refuses" in log.read_text() or again.poll() is not None, "the refusal")
    (small_disk / "ballast").unlink()
    assert again.wait(300) == 0, log.read_text()
    rows = [row["id"] for row in read(job.output)]
    assert sorted(rows) == sorted(f"id-{index}" for index in range(ROWS))
    bill.check()
    assert magbatch("verify", str(job.output)).returncode == 0


def fill(path: Path) -> None:
    """Take all that is left of a disk."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def check_refused(job: JobFiles, path: Path, why: str) -> None:
    """Exit code 2 and one clear line that names the place, before any request to an engine."""
    failed = magbatch("run", job.write_spec(output={"path": str(path)}))
    assert failed.returncode == 2, failed.stderr
    (line,) = failed.stderr.splitlines()
    assert line.startswith(f"magbatch: output.path: {path}: {why}")
    assert not journal(job.journal), "rows were asked before the output was known to take answers"
    assert os.listdir(job.input) == ["a.parquet"]


def test_an_output_that_is_a_file_is_one_clear_line(job: JobFiles) -> None:
    job.write_input(4)
    (job.folder / "taken").write_text("a file where a folder should be")
    check_refused(job, job.folder / "taken", f"{job.folder}/taken is a file")


def test_an_output_that_may_not_be_written_is_one_clear_line(job: JobFiles, small_disk: Path) -> None:
    job.write_input(4)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    check_refused(job, small_disk / "out", f"{small_disk} is not writable")
