"""The identity of a process is its own for as long as it runs."""

import os
import subprocess
import sys

from magbatch.process import process_space, started_at


def test_all_processes_of_this_machine_share_a_space() -> None:
    other = subprocess.run(
        [sys.executable, "-c", "from magbatch.process import process_space; print(process_space())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert other.stdout.strip() == process_space() != ""


def test_a_process_has_one_start_and_an_ended_one_has_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = started_at(child.pid)
    assert began == started_at(child.pid)
    assert int(began) >= int(started_at(os.getpid()))
    child.communicate(b"\n")
    assert started_at(child.pid) == ""


def test_a_zombie_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert started_at(child.pid) == ""
    child.wait()
