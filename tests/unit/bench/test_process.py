"""A process of an arm: talked to, waited for, on its cores, and gone with all that it started."""

import mmap
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from magbatch.bench import probe
from magbatch.bench.bounds import own_bytes
from magbatch.bench.process import Machine, Process
from magbatch.errors import BenchError

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
CHILD = "import time; print(1, flush=True); time.sleep(60)"
FAMILY = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CHILD!r}])"
ORPHAN = f"""
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', {CHILD!r}], stdout=subprocess.DEVNULL)
time.sleep(1.5)
print(json.dumps({{'child': child.pid}}), flush=True)
"""
LAST_WORDS = "import sys; print('no such model', file=sys.stderr); sys.exit(7)"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def run(script: str, log: Path, *, piped: bool = False) -> Process:
    return Process([sys.executable, "-c", script], dict(os.environ), log, (), piped=piped)


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def echo(log: Path) -> Iterator[Process]:
    process = run(ECHO, log, piped=True)
    yield process
    process.end()


def test_it_answers_line_by_line_and_says_when_it_is_gone(echo: Process) -> None:
    for number in range(3):
        echo.send({"number": number})
        assert echo.receive(30, "an echo") == {"number": number}
    with pytest.raises(BenchError, match="an echo said nothing for 0 s"):
        echo.receive(0.05, "an echo")
    echo.popen.kill()
    echo.send({"number": 4})
    with pytest.raises(BenchError, match="an echo is gone"):
        echo.receive(30, "an echo")


def test_one_that_is_paused_says_nothing_until_it_goes_on(echo: Process) -> None:
    echo.pause()
    echo.send({"number": 1})
    with pytest.raises(BenchError, match="an echo said nothing"):
        echo.receive(0.3, "an echo")
    echo.resume()
    assert echo.receive(30, "an echo") == {"number": 1}


def test_one_that_is_paused_can_be_ended(log: Path) -> None:
    process = run(FAMILY, log)
    process.pause()
    process.end()
    assert process.popen.returncode == -signal.SIGTERM  # it was asked, and heard it


def test_one_that_fails_is_an_error_with_its_last_words(log: Path) -> None:
    process = run(LAST_WORDS, log)
    with pytest.raises(BenchError, match="it ended with exit code 7; its last lines:\n  no such model"):
        process.wait(30, "it")
    with pytest.raises(BenchError, match="it ended with exit code 7 before it was 'ready'"):
        process.wait_for("ready", log.parent, 30, "it")
    process.end()


def test_nothing_that_it_has_started_outlives_it(log: Path) -> None:
    process = run(FAMILY, log, piped=True)
    assert process.popen.stdout is not None
    process.popen.stdout.readline()
    (child,) = psutil.Process(process.popen.pid).children()
    process.end()
    assert not alive(child)


def test_what_it_has_started_does_not_outlive_it_either_where_it_died_first(log: Path) -> None:
    process = run(ORPHAN, log, piped=True)
    child = psutil.Process(process.receive(30, "it")["child"])
    process.popen.wait(30)
    assert alive(child)
    process.end()
    assert not alive(child)


def test_one_that_is_gone_is_ended_though_it_was_told_something(log: Path) -> None:
    process = run("pass", log, piped=True)
    process.popen.wait(30)
    process.send({"number": 1})
    process.end()


def test_an_engine_has_its_cores_and_everything_else_the_others(echo: Process, tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    engine, other = (cores[0],), (cores[-1],)
    machine = Machine("builtin:tiny", {}, 0, engine, other)
    echo.pin(machine, tmp_path)
    assert os.sched_getaffinity(echo.popen.pid) == set(other)
    (tmp_path / probe.EVENTS).write_text(f'{{"event": "engine", "at": 1.0, "pid": {echo.popen.pid}}}\n')
    echo.pin(machine, tmp_path)
    assert os.sched_getaffinity(echo.popen.pid) == set(engine)
    echo.confine(cores)
    assert os.sched_getaffinity(echo.popen.pid) == set(cores)


@pytest.mark.parametrize(
    ("gpus", "cores", "threads", "bound", "huge"),
    [(0, (), "1", "nobind", "1"), (0, (0, 1), "2", "nobind", "1"), (1, (), "1", None, None)],
)
def test_what_ray_and_magbatch_set_for_their_own_is_set_for_every_arm(
    gpus: int,
    cores: tuple[int, ...],
    threads: str,
    bound: str | None,
    huge: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.delenv(name, raising=False)
    env = Machine("builtin:tiny", {}, gpus, cores, ()).environment(tmp_path / "events")
    found = (env["OMP_NUM_THREADS"], env.get("VLLM_CPU_OMP_THREADS_BIND"), env.get("THP_MEM_ALLOC_ENABLE"))
    assert found == (threads, bound, huge)


def test_a_ready_engine_waits_until_it_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(probe.HELD_ENV, "1")
    held = threading.Thread(target=probe.hold, args=(tmp_path,))
    held.start()
    held.join(0.2)
    assert [event["event"] for event in probe.events(tmp_path)] == ["ready"]
    probe.release(tmp_path)
    held.join(30)
    assert [event["event"] for event in probe.events(tmp_path)] == ["ready", "go"]
    monkeypatch.delenv(probe.HELD_ENV)
    free = tmp_path / "free"
    free.mkdir()
    probe.hold(free)  # for a user nothing is held
    assert len(probe.events(free)) == 2


def test_memory_that_is_shared_is_no_processs_own() -> None:
    size, before = 64 << 20, own_bytes(os.getpid())
    with mmap.mmap(-1, size) as shared:
        shared.write(b"x" * size)
        with_shared = own_bytes(os.getpid())
    own = b"y" * size
    with_own = own_bytes(os.getpid())
    assert with_shared - before < size // 2
    assert with_own - before > size // 2
    assert len(own) == size
    assert own_bytes(2**22 + 1) == 0  # no process has such a number
