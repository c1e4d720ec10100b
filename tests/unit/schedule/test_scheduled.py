"""A job that fails is looked at again later and later, but its next tick is never late."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from support.schedules import NOW, write

from magbatch.schedule.scheduled import EndedTick, RunningTick, ScheduledJob
from magbatch.spec import load


def scheduled(folder: Path, cron: str = "0 6 * * 1") -> ScheduledJob:
    write(folder, "a", cron=cron)
    spec = load(str(folder / "a.yaml"))
    assert spec.schedule is not None
    return ScheduledJob("a.yaml", spec, spec.schedule, (0, 0), NOW)


def test_each_failure_doubles_the_wait_up_to_an_hour(tmp_path: Path) -> None:
    job, waits = scheduled(tmp_path), list[int]()
    for _ in range(8):
        job.wait(NOW)
        waits.append((job.wake - NOW) // timedelta(minutes=1))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_mistake_waits_longer(tmp_path: Path) -> None:
    job = scheduled(tmp_path)
    job.wait(NOW, mistake=True)
    assert job.wake == NOW + timedelta(minutes=16)


def test_a_failure_never_delays_the_next_tick(tmp_path: Path) -> None:
    job = scheduled(tmp_path, "*/5 * * * *")
    job.wait(NOW, mistake=True)
    assert job.wake == NOW + timedelta(minutes=4)


@pytest.mark.parametrize(("reason", "because"), [("", ""), ("no disk", " (no disk)")])
def test_an_ended_tick_is_told_in_words_and_keeps_its_job_busy(tmp_path: Path, reason: str, because: str) -> None:
    ended, job = EndedTick(NOW, 3, reason), scheduled(tmp_path)
    assert (str(ended), ended.because) == (f"the run of {NOW.isoformat()}", because)
    assert not job.is_busy
    job.ended = ended
    assert job.is_busy


def test_a_running_tick_keeps_its_job_busy(tmp_path: Path) -> None:
    job = scheduled(tmp_path)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        job.running = RunningTick(process, NOW)
        assert job.is_busy
