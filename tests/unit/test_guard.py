"""Whatever ends a command, its exit code is true, and nothing that it started is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import os, signal, subprocess, sys, time
from magbatch import guard

def stopped(number, frame):
    print("told", signal.Signals(number).name, flush=True)
    guard.announce(3)
    os._exit(3)

for number in (signal.SIGINT, guard.STOP):
    signal.signal(number, stopped)
guard.enter()
orphan = subprocess.Popen([sys.executable, "-c",
    "import subprocess, sys; subprocess.Popen(['sleep', '300'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"])
orphan.wait()
print("begun", guard.command_pid(), flush=True)
sys.stdin.readline()
"""


class Command:
    """A small command under guard, with an orphan of its own that would live for minutes.

    Args:
        body: Last work of the driver.
        args: On its command line.
    """

    def __init__(self, body: str, *args: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM + body, *args],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"begun {self.process.pid}\n"
        self.front = psutil.Process(self.process.pid)
        (self.keeper,) = self.front.children()
        self.family = self.keeper.children(recursive=True)
        (self.driver,) = (one for one in self.family if one.name() != "sleep")
        assert len(self.family) == 2
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ended(self) -> tuple[int, str, str]:
        """Exit code, what was printed and what was said, once all is over."""
        printed, said = self.process.communicate(timeout=60)
        assert alive([self.keeper, *self.family]) == []
        return self.process.returncode, printed, said


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


AGAIN = "Run the same command again to continue.\n"


@pytest.mark.parametrize("code", [0, 1, 4])
def test_an_exit_code_that_was_announced_holds_whatever_comes_after(code: int) -> None:
    assert Command(f"guard.announce({code}); guard.announce(2); os.abort()").ended() == (code, "", "")


@pytest.mark.parametrize("code", [0, 1, 15])
def test_a_driver_that_ends_without_a_word_was_interrupted(code: int) -> None:
    command = Command(f"os._exit({code})")
    ended, _, said = command.ended()
    assert ended == 3
    why = f"the job's driver (process {command.driver.pid}) ended by itself with exit code {code}"
    assert said == f"magbatch: {why}, as Ray's code does when Ray breaks down\n{AGAIN}"


def test_a_program_is_told_in_a_document() -> None:
    command = Command("os.kill(os.getpid(), signal.SIGKILL)", "--json")
    code, printed, said = command.ended()
    killed = f"the job's driver (process {command.driver.pid}) was killed by SIGKILL"
    why = f"{killed}, for example by a kernel that is short of memory"
    assert (code, said) == (3, "")
    assert json.loads(printed) == {"error": "ClusterError", "message": why, "exit_code": 3}


def test_whoever_kills_the_keeper_ends_all() -> None:
    command = Command("time.sleep(300)")
    command.keeper.kill()
    code, _, said = command.ended()
    assert code == 3
    assert "keeper" in said
    assert "SIGKILL" in said


@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_whoever_kills_the_front_ends_all(group: bool) -> None:
    command = Command("time.sleep(300)")
    if group:
        os.killpg(command.process.pid, signal.SIGKILL)
    else:
        command.process.kill()
    deadline = time.monotonic() + 15
    while alive([command.keeper, *command.family]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert command.ended()[0] == -signal.SIGKILL


@pytest.mark.parametrize(
    ("sent", "told"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGUSR2"), ("SIGHUP", "SIGUSR2")]
)  # fmt: skip
def test_signals_reach_the_driver(sent: str, told: str) -> None:
    command = Command("while True: time.sleep(0.1)")
    os.killpg(command.process.pid, signal.Signals[sent])
    assert command.ended() == (3, f"told {told}\n", "")


def test_a_driver_that_has_said_what_broke_is_not_waited_for() -> None:
    command = Command("guard.explain('the raylet\\nis gone'); guard.announce(3); time.sleep(300)")
    assert command.ended() == (3, "", "")
    hangs = Command("guard.explain('the raylet\\nis gone'); time.sleep(300)")
    assert hangs.ended() == (3, "", f"magbatch: the raylet is gone\n{AGAIN}")


def test_a_command_that_stands_still_has_a_driver_that_does() -> None:
    command = Command("time.sleep(300)")

    def becomes(*states: str) -> None:
        deadline = time.monotonic() + 30
        while command.driver.status() not in states:
            assert time.monotonic() < deadline, command.driver.status()
            time.sleep(0.05)

    command.process.send_signal(signal.SIGSTOP)
    becomes(psutil.STATUS_STOPPED)
    command.process.send_signal(signal.SIGCONT)
    becomes(psutil.STATUS_SLEEPING)
    command.process.send_signal(signal.SIGINT)
    assert command.ended()[0] == 3


def test_sigterm_ends_any_command_with_3_from_its_first_import_on(tmp_path: Path) -> None:
    script = (
        "import os, runpy, signal, sys\n"
        "class Hook:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == WHERE: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Hook())\n"
        "sys.argv = ['magbatch', 'compact', OUTPUT]\n"
        "runpy.run_module('magbatch', run_name='__main__')\n"
    )
    for name in ("typer", "magbatch.jobs.compact", "pyarrow.compute", "numpy.linalg", "pydantic"):
        program = f"WHERE, OUTPUT = {name!r}, {str(tmp_path)!r}\n{script}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (3, ""), (name, done.stderr)
        assert done.stderr == f"magbatch: interrupted; committed rows stay\n{AGAIN}", name
