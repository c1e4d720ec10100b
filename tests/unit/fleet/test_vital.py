"""The end of a process that a local Ray cannot do without is seen at once, and told with its cause."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from magbatch import guard
from magbatch.fleet.vital import Vital


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(guard, "explain", said.append)
    return said


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that lasts longer than the test; all are ended with it."""
    with ExitStack() as stack:

        def started(*command: str) -> subprocess.Popen[bytes]:
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.DEVNULL))
            stack.callback(process.kill)
            return process

        yield started


def until(vital: Vital) -> str:
    for _ in range(500):
        if (broken := vital.broken()) is not None:
            return broken
        time.sleep(0.01)
    pytest.fail("nothing was seen")


def test_a_process_that_ends_is_told_with_how_it_ended(
    begin: Callable[..., subprocess.Popen[bytes]], explained: list[str]
) -> None:
    before = begin("sleep", "60")  # of somebody else, and none of the watch's business
    vital = Vital(local=True, names=("sleep",), look_s=0.01)
    with vital.watched(starting=True):
        started, other = begin("sleep", "60"), begin("tail", "-f", "/dev/null")
    assert vital.broken() is None
    with vital.watched():
        for process in (before, other):
            process.kill()
            process.wait()
        assert vital.broken() is None
        started.terminate()
        broken = until(vital)
        time.sleep(0.05)
    assert broken.startswith(f"Ray's sleep (process {started.pid}) ")
    assert "SIGTERM" in broken
    assert explained == [broken]
    assert started.wait() == -15, "it was left to be waited for by Ray"


def test_on_a_cluster_nothing_is_watched(begin: Callable[..., subprocess.Popen[bytes]], explained: list[str]) -> None:
    vital = Vital(local=False, names=("sleep",), look_s=0.01)
    with vital.watched(starting=True):
        process = begin("sleep", "60")
        process.kill()
        process.wait()
    assert (vital.broken(), explained) == (None, [])
