"""The machine that is measured, and one process on it with all that it starts: on which cores, for how long."""

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
TREE_INTERVAL_S = 1.0  # a look at all processes costs milliseconds of what is measured
LOG_LINES = 12
PINS = 3  # times, 0.1 s apart: what starts during the first is found by the next


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the arms run.

    Attributes:
        model: As in a spec.
        engine_args: Given to every arm beside the offline defaults.
        gpus: Of the engine; 0 runs on CPUs.
        engine_cores: Cores of the engine's processes; empty pins nothing.
        other_cores: Cores of everything else.
    """

    model: str
    engine_args: dict[str, Any]
    gpus: int
    engine_cores: tuple[int, ...] = ()
    other_cores: tuple[int, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """For `workloads.job`."""
        return {"model": self.model, "engine_args": self.engine_args, "gpus": self.gpus}

    def environment(self, events: Path, *, steps: bool = False, held: bool = False) -> dict[str, str]:
        """Of every process of an arm.

        Args:
            events: Where the probe notes what happens.
            steps: Whether it notes every step of the engine.
            held: Whether an engine that is ready waits for `probe.let_go`.
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
            "RAY_worker_niceness": "0",  # Ray's 15 would give way to whatever else the machine does, and raw would not
        }
        if self.engine_cores:
            env["OMP_NUM_THREADS"] = str(len(self.engine_cores))
        else:
            env.setdefault("OMP_NUM_THREADS", "1")  # as Ray sets it for its actors: else raw alone would have another
        if not self.gpus:
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # vLLM would keep one of the cores free, and there may be one
            env.setdefault(HUGE_PAGES, "1")  # as magbatch's engine does: all arms get them
        if steps:
            env[probe.STEPS_ENV] = "1"
        if held:
            env[probe.HELD_ENV] = "1"
        return env


class Process:
    """A process of an arm with all that it starts; nothing of it outlives `end`.

    Args:
        command: What to run.
        env: Its environment.
        log: Gets what it prints, but for a piped standard output.
        cores: That it may use; empty is all.
        piped: Whether standard input and output are for talking to it.
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
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,  # no threads here
            start_new_session=True,  # Ctrl-C is for who runs the benchmark, which ends this one
        )  # fmt: skip
        self._children: set[psutil.Process] = set()
        self._remembered = 0.0

    def wait(self, timeout_s: float, what: str, look: Callable[[psutil.Process], None] | None = None) -> None:
        """Wait for a good end, with a look at it meanwhile; raises BenchError otherwise."""
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
        """Wait until the probe has noted an event.

        Raises:
            BenchError: The process ended before, or it takes too long.
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
        """Give every thread its cores: the engine's processes theirs, all others the rest; later ones inherit them.

        For an engine that can be asked: a start on one core takes twice as long, and is not what is compared.
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
        """Give every thread, those of an engine too, these cores."""
        for process in self.tree():
            _give(process, cores)

    def pause(self) -> None:
        """Stop it and all that it has started, so that they take nothing from others, until `go_on`."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def go_on(self) -> None:
        """End a `pause`."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def tell(self, what: dict[str, Any]) -> None:
        """One line of JSON to its standard input."""
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):  # the answer tells
            self.popen.stdin.write(f"{json.dumps(what)}\n".encode())
            self.popen.stdin.flush()

    def said(self, timeout_s: float, what: str) -> dict[str, Any]:
        """The next line of JSON from its standard output; raises BenchError where none comes."""
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
        """An error with the last lines of the log."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()][-LOG_LINES:]
        return BenchError("\n  ".join([f"{what}; its last lines:", *lines]))

    def _remember(self) -> None:
        """Note what it has started: children whose parent has died are no longer below it."""
        now = time.monotonic()
        if now - self._remembered >= TREE_INTERVAL_S:
            self._remembered = now
            self._children |= set(self.tree()[1:])

    def tree(self) -> list[psutil.Process]:
        """It, and what it has started."""
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self.popen.pid)
            return [root, *root.children(recursive=True)]
        return []

    def end(self) -> None:
        """End it, and whatever it has started."""
        tree = {*self.tree(), *self._children}
        if self.popen.poll() is None:
            self.go_on()  # who is paused hears nothing
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
                with suppress(BrokenPipeError):  # of what was told to one that was gone
                    stream.close()


def _give(process: psutil.Process, cores: Iterable[int]) -> None:
    """Give a process's threads these cores; one that has ended needs none."""
    with suppress(psutil.NoSuchProcess):
        for thread in process.threads():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, cores)
