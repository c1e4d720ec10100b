"""The measured machine, and a process tree on it: its cores, its time limit, its end."""

import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from magbatch.bench import probe
from magbatch.engines.base import HUGE_PAGES
from magbatch.errors import BenchError
from magbatch.fleet.ray_settings import NO_UV

GRACE_S = 30.0
LOOK_INTERVAL_S = 0.1
TREE_INTERVAL_S = 1.0  # listing all processes takes milliseconds of the measured time
LOG_LINES = 12
PINS = 3  # rounds of pinning, 0.1 s apart: a later round finds processes that start during the first


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and the engine settings of all arms.

    Attributes:
        model: Source of the model, as in a spec.
        engine_args: Engine arguments of every arm, over the offline defaults.
        gpus: Number of GPUs of the engine; 0 runs it on CPUs.
        engine_cores: Numbers of the cores of the engine's processes; empty pins nothing.
        other_cores: Numbers of the cores of all other processes.
    """

    model: str
    engine_args: dict[str, Any]
    gpus: int
    engine_cores: tuple[int, ...] = ()
    other_cores: tuple[int, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Settings for `workloads.job`."""
        return {"model": self.model, "engine_args": self.engine_args, "gpus": self.gpus}

    def environment(self, events: Path, *, steps: bool = False, held: bool = False) -> dict[str, str]:
        """Environment variables of every process of an arm.

        Args:
            events: Folder for the probe's events.
            steps: Whether the probe records every step of the engine.
            held: Whether a ready engine waits for `probe.release`.
        """
        plugin = probe.plugin_folder(events.parent / "plugin")
        paths = [str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])]
        events.mkdir(parents=True, exist_ok=True)
        env = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            probe.EVENTS_ENV: str(events),
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "RAY_USAGE_STATS_ENABLED": "0",
            **NO_UV,
            "RAY_worker_niceness": "0",  # Ray's default of 15 yields to other processes; the arm raw does not
        }
        if self.engine_cores:
            env["OMP_NUM_THREADS"] = str(len(self.engine_cores))
        else:
            env.setdefault("OMP_NUM_THREADS", "1")  # Ray sets 1 for its actors; without this the arm raw would differ
        if not self.gpus:
            env["VLLM_CPU_OMP_THREADS_BIND"] = (
                "nobind"  # else vLLM keeps one core free, and the machine may have only one
            )
            env.setdefault(HUGE_PAGES, "1")  # magbatch's engine uses huge pages, so all arms do
        if steps:
            env[probe.STEPS_ENV] = "1"
        if held:
            env[probe.HELD_ENV] = "1"
        return env


class Process:
    """A process of an arm and its descendants; none of them outlives `end`.

    Args:
        command: Command line.
        env: Environment variables.
        log: File for the output, without a piped standard output.
        cores: Numbers of the cores that it may use; empty for all cores.
        piped: Whether standard input and output carry messages.
    """

    def __init__(
        self, command: list[str], env: dict[str, str], log: Path, cores: tuple[int, ...], *, piped: bool = False
    ) -> None:
        self._log = log
        self._file: IO[bytes] = log.open("ab")
        pipe = subprocess.PIPE if piped else None
        self.began = time.time()
        self.popen = subprocess.Popen(
            command, env=env, stdin=pipe or subprocess.DEVNULL, stdout=pipe or self._file, stderr=self._file,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,  # no other threads
            start_new_session=True,  # Ctrl-C must reach only the benchmark, which ends this process
        )  # fmt: skip
        self._children: set[psutil.Process] = set()
        self._remembered = 0.0

    def wait(self, timeout_s: float, what: str, look: Callable[[psutil.Process], None] | None = None) -> None:
        """Wait until the process ends with exit code 0.

        Args:
            timeout_s: Time limit in seconds.
            what: Name of the process in messages.
            look: Function called with the process while it runs, ten times per second; None calls nothing.

        Raises:
            BenchError: The process failed, or took longer.
        """
        deadline = time.monotonic() + timeout_s
        root = psutil.Process(self.popen.pid)
        while self.popen.poll() is None:
            self._remember()
            if look is not None:
                with suppress(psutil.NoSuchProcess):
                    look(root)
            if time.monotonic() > deadline:
                raise self.failed(f"{what} did not end within {timeout_s:,.0f} s")
            time.sleep(LOOK_INTERVAL_S)
        if self.popen.returncode:
            raise self.failed(f"{what} ended with exit code {self.popen.returncode}")

    def wait_for(self, event: str, events: Path, timeout_s: float, what: str) -> None:
        """Wait until the probe has recorded an event.

        Raises:
            BenchError: The process ended first, or took longer than the time limit.
        """
        deadline = time.monotonic() + timeout_s
        while not any(one["event"] == event for one in probe.events(events)):
            self._remember()
            if self.popen.poll() is not None:
                raise self.failed(f"{what} ended with exit code {self.popen.returncode} before it was {event!r}")
            if time.monotonic() > deadline:
                raise self.failed(f"{what} was not {event!r} within {timeout_s:,.0f} s")
            time.sleep(LOOK_INTERVAL_S)

    def pin(self, machine: Machine, events: Path) -> None:
        """Pin the engine's processes to the engine's cores, and all other processes to the rest.

        Later threads inherit their cores. Pinning comes after the engine's start, which takes twice as long on one core
        and is not compared.
        """
        if not machine.engine_cores:
            return
        engines = {event["pid"] for event in probe.events(events) if event["event"] == "engine"}
        for _ in range(PINS):
            theirs = set(engines)
            for one in engines:
                with suppress(psutil.NoSuchProcess):
                    theirs |= {child.pid for child in psutil.Process(one).children(recursive=True)}
            for process in self.tree():
                _give(process, machine.engine_cores if process.pid in theirs else machine.other_cores)
            time.sleep(LOOK_INTERVAL_S)

    def confine(self, cores: Iterable[int]) -> None:
        """Pin every thread of the process tree to these cores."""
        for process in self.tree():
            _give(process, cores)

    def pause(self) -> None:
        """Stop the process tree until `resume`, so it takes no CPU time from other arms."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """End a `pause`."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def send(self, what: dict[str, Any]) -> None:
        """Write one line of JSON to its standard input."""
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):  # the missing reply reports it
            self.popen.stdin.write(f"{json.dumps(what)}\n".encode())
            self.popen.stdin.flush()

    def receive(self, timeout_s: float, what: str) -> dict[str, Any]:
        """Read the next line of JSON from its standard output.

        Raises:
            BenchError: No line comes within the time limit (seconds).
        """
        assert self.popen.stdout is not None
        deadline = time.monotonic() + timeout_s
        while not select.select([self.popen.stdout], [], [], LOOK_INTERVAL_S)[0]:
            self._remember()
            if time.monotonic() > deadline:
                raise self.failed(f"{what} said nothing for {timeout_s:,.0f} s")
        line = self.popen.stdout.readline()
        if not line:
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(GRACE_S)
            raise self.failed(f"{what} is gone")
        said: dict[str, Any] = json.loads(line)
        return said

    def failed(self, what: str) -> BenchError:
        """Make an error that ends with the last lines of the log."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()][-LOG_LINES:]
        return BenchError("\n  ".join([f"{what}; its last lines:", *lines]))

    def _remember(self) -> None:
        """Remember descendants: a child whose parent has died leaves the tree."""
        now = time.monotonic()
        if now - self._remembered >= TREE_INTERVAL_S:
            self._remembered = now
            self._children |= set(self.tree()[1:])

    def tree(self) -> list[psutil.Process]:
        """The process and its descendants; empty if it has ended."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.popen.pid)
            return [root, *root.children(recursive=True)]
        return []

    def end(self) -> None:
        """End the process and all its descendants."""
        tree = {*self.tree(), *self._children}
        if self.popen.poll() is None:
            self.resume()  # a paused process receives no signal
            with suppress(ProcessLookupError):
                self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(GRACE_S)
        tree |= set(self.tree())
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs([process for process in tree if process.pid != self.popen.pid], timeout=GRACE_S)
        self.popen.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self._file):
            if stream is not None:
                with suppress(BrokenPipeError):  # unsent messages to a process that was gone
                    stream.close()


def _give(process: psutil.Process, cores: Iterable[int]) -> None:
    """Pin the threads of a process to cores; an ended process is skipped."""
    with suppress(psutil.NoSuchProcess):
        for thread in process.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)
