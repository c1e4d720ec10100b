"""The arms: what answers a workload, each in processes of its own, timed and counted by what it wrote.

An arm's time is from the moment at which its engine can be asked (the probe notes it) to its last file.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import psutil
import pyarrow.parquet as pq
import yaml

from magbatch.bench import probe
from magbatch.bench.workloads import Prepared, Workload, job
from magbatch.errors import BenchError
from magbatch.model import engine_args, facts, locate

START_TIMEOUT_S = 900.0
RUN_TIMEOUT_S = 3600.0
GRACE_S = 30.0
LOG_LINES = 12
DIED = "is gone"
PINS = 3  # looks, 0.1 s apart: what starts during the first is found by the next


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

    def environment(self, events: Path, *, steps: bool = False) -> dict[str, str]:
        """Of every process of an arm."""
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
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_worker_niceness": "0",  # Ray's 15 would give way to whatever else the machine does, and raw would not
        }
        if self.engine_cores:
            env["OMP_NUM_THREADS"] = str(len(self.engine_cores))
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # vLLM would keep one of the cores free, and there may be one
        if steps:
            env[probe.STEPS_ENV] = "1"
        return env


@dataclass(slots=True)
class Run:
    """One arm, once.

    Attributes:
        arm: Its name.
        round: From 1; 0 is of a sweep.
        seconds: From the ready engine to the last file.
        rows: That were written.
        tokens: That were written.
        start_s: From the command to the ready engine; 0 where the engine was there.
        first_request_s: From the command to the first request in the engine; None where it was not the first run.
        settings: What the engine resolved.
        folder: What the arm left.
    """

    arm: str
    round: int
    seconds: float
    rows: int
    tokens: int
    start_s: float
    first_request_s: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.seconds


class Arm(Protocol):
    """Something that answers a workload."""

    name: str

    def run(self, prepared: Prepared, folder: Path, *, steps: bool = False) -> Run:
        """Answer every row into a new folder; raises BenchError."""

    def close(self) -> None:
        """End what it keeps between runs."""


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

    def wait(self, timeout_s: float, what: str, look: Callable[[psutil.Process], None] | None = None) -> None:
        """Wait for a good end, with a look at it meanwhile; raises BenchError otherwise."""
        deadline = time.monotonic() + timeout_s
        root = psutil.Process(self.popen.pid)
        while self.popen.poll() is None:
            with suppress(psutil.NoSuchProcess):
                self._children |= set(root.children(recursive=True))
                if look is not None:
                    look(root)
            if time.monotonic() > deadline:
                raise self.failed(f"{what} did not end within {timeout_s:,.0f} s")
            time.sleep(0.1)
        if self.popen.returncode:
            raise self.failed(f"{what} ended with exit code {self.popen.returncode}")

    def pinning(self, machine: Machine, events: Path) -> Callable[[psutil.Process], None]:
        """A look for `wait`: once the engine can be asked, it gets its cores, and everything else the others.

        Not before: a start on one core takes twice as long, and is not what is compared.
        """
        left = PINS if machine.engine_cores else 0

        def look(root: psutil.Process) -> None:
            nonlocal left
            if not left or not any(event["event"] == "ready" for event in probe.events(events)):
                return
            left -= 1
            pin(root, machine, events)

        return look

    def failed(self, what: str) -> BenchError:
        """An error with the last lines of the log."""
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()][-LOG_LINES:]
        return BenchError("\n  ".join([f"{what}; its last lines:", *lines]))

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
                stream.close()


def pin(root: psutil.Process, machine: Machine, events: Path) -> None:
    """Give every thread of an arm its cores: the engine's processes theirs, all others the rest."""
    engines = {event["pid"] for event in probe.events(events) if event["event"] == "engine"}
    theirs: set[int] = set(engines)
    for one in engines:
        with suppress(psutil.NoSuchProcess):
            theirs |= {child.pid for child in psutil.Process(one).children(recursive=True)}
    for process in [root, *root.children(recursive=True)]:
        cores = machine.engine_cores if process.pid in theirs else machine.other_cores
        with suppress(psutil.NoSuchProcess):
            for thread in process.threads():
                with suppress(ProcessLookupError):  # it has ended
                    os.sched_setaffinity(thread.id, cores)


def _timed(
    name: str, began: float, events: Path, written: dict[str, int], ended: float, prepared: Prepared, folder: Path
) -> Run:
    """A run by its events and what it wrote."""
    check_written(name, written, prepared.lengths)
    happened = {event["event"]: event for event in reversed(probe.events(events))}
    if "ready" not in happened or "engine" not in happened:
        raise BenchError(f"{name}: vLLM loaded no probe: VLLM_PLUGINS must not be set for a benchmark")
    ready = happened["ready"]["at"]
    return Run(
        name, 0, ended - ready, len(written), sum(written.values()), ready - began,
        happened["first request"]["at"] - began, happened["engine"]["settings"] | happened["engine"]["env"], folder,
    )  # fmt: skip


def check_written(name: str, written: dict[str, int], lengths: dict[str, int]) -> None:
    """Every row is there, with the tokens that were forced on it.

    Raises:
        BenchError: The arm has not done the work.
    """
    missing = lengths.keys() - written.keys()
    if missing:
        raise BenchError(f"{name}: {len(missing):,} of {len(lengths):,} rows were not written, such as {min(missing)}")
    wrong = [one for one in lengths if written[one] != lengths[one]]
    if wrong:
        first = wrong[0]
        raise BenchError(
            f"{name}: {len(wrong):,} rows have other lengths than were forced, such as {first}: "
            f"{written[first]} tokens instead of {lengths[first]}"
        )


def _token_lists(files: list[Path]) -> tuple[dict[str, int], float]:
    """Tokens by id, and when the last file was written."""
    if not files:
        raise BenchError("no file was written")
    written: dict[str, int] = {}
    for file in files:
        table = pq.ParquetFile(file).read()
        for one, tokens in zip(table["id"].to_pylist(), table["tokens"].to_pylist(), strict=True):
            written[one] = len(tokens)
    return written, max(file.stat().st_ctime for file in files)  # a rename commits: it changes no mtime


def resolved_args(machine: Machine, workload: Workload) -> tuple[Path, dict[str, Any]]:
    """The checkpoint and the engine arguments of every arm: those that magbatch's own job gets."""
    spec = job(workload, Path("/nowhere"), Path("/nowhere/out"), machine.settings)
    checkpoint = locate(spec.model, weights=True)
    return checkpoint, engine_args(spec, facts(checkpoint))


class Magbatch:
    """A complete job: Parquet in, committed Parquet out."""

    name = "magbatch"

    def __init__(self, machine: Machine, workload: Workload) -> None:
        self._machine, self._workload = machine, workload

    def run(self, prepared: Prepared, folder: Path, *, steps: bool = False) -> Run:
        """See `Arm.run`."""
        events, output = folder / "events", folder / "out"
        env = self._machine.environment(events, steps=steps)
        spec = job(self._workload, prepared.rows, output, self._machine.settings)
        file = folder / "job.yaml"
        file.write_text(yaml.safe_dump(spec.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-m", "magbatch", "run", str(file), "--json"]
        process = Process(command, env, folder / "log", ())
        try:
            process.wait(RUN_TIMEOUT_S, "magbatch run", process.pinning(self._machine, events))
        finally:
            process.end()
        files = sorted((output / "results").glob("*.parquet"))
        written: dict[str, int] = {}
        for one in files:
            table = pq.ParquetFile(one).read(["id", "reasoning_tokens", "answer_tokens"])
            written |= {row["id"]: row["reasoning_tokens"] + row["answer_tokens"] for row in table.to_pylist()}
        ended = max((one.stat().st_ctime for one in files), default=0.0)
        return _timed(self.name, process.began, events, written, ended, prepared, folder)

    def close(self) -> None:
        """Nothing is kept."""


class RayDataLlm:
    """Ray's own.

    Args:
        machine: Where.
        workload: What.
        batch_size: Rows of a batch; None is its default.
        batches: Batches at once in an engine; None is its default.
        name: Of the arm.
    """

    def __init__(
        self, machine: Machine, workload: Workload, batch_size: int | None, batches: int | None, name: str
    ) -> None:
        self.name = name
        self._machine = machine
        self._chosen = {"batch_size": batch_size, "max_concurrent_batches": batches, "gpus": machine.gpus}
        self._checkpoint, self._args = resolved_args(machine, workload)

    def run(self, prepared: Prepared, folder: Path, *, steps: bool = False) -> Run:
        """See `Arm.run`."""
        events, output = folder / "events", folder / "out"
        env = self._machine.environment(events, steps=steps)
        config = folder / "config.json"
        asked = {"checkpoint": str(self._checkpoint), "engine_args": self._args, "prompts": str(prepared.prompts)}
        config.write_text(json.dumps(asked | self._chosen | {"output": str(output)}))
        command = [sys.executable, "-m", "magbatch.bench.ray_arm", str(config)]
        process = Process(command, env, folder / "log", ())
        try:
            process.wait(RUN_TIMEOUT_S, self.name, process.pinning(self._machine, events))
        finally:
            process.end()
        written, ended = _token_lists(sorted(output.glob("*.parquet")))
        return _timed(self.name, process.began, events, written, ended, prepared, folder)

    def close(self) -> None:
        """Nothing is kept."""


class RunBatch:
    """`vllm run-batch`: JSONL in and out, chats templated by vLLM itself."""

    name = "vllm run-batch"

    def __init__(self, machine: Machine, workload: Workload) -> None:
        self._machine = machine
        self._checkpoint, self._args = resolved_args(machine, workload)

    def run(self, prepared: Prepared, folder: Path, *, steps: bool = False) -> Run:
        """See `Arm.run`."""
        events, asked, output = folder / "events", folder / "in.jsonl", folder / "out.jsonl"
        env = self._machine.environment(events, steps=steps)
        with asked.open("w", encoding="utf-8") as file:
            for row in pq.read_table(prepared.rows).to_pylist():
                body = {
                    "model": str(self._checkpoint), "messages": [{"role": "user", "content": row["question"]}],
                    "temperature": 0, "max_tokens": row["tokens"], "ignore_eos": True,
                }  # fmt: skip
                request = {"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions", "body": body}
                file.write(f"{json.dumps(request)}\n")
        # Not by the `vllm` command: that of vllm-cpu looks for a package by the name of vllm, and fails.
        command = [sys.executable, "-m", "vllm.entrypoints.launchers.run_batch", "-i", str(asked), "-o", str(output)]
        process = Process(
            [*command, "--model", str(self._checkpoint), *_flags(self._args)], env, folder / "log", (),
        )  # fmt: skip
        try:
            process.wait(RUN_TIMEOUT_S, self.name, process.pinning(self._machine, events))
        finally:
            process.end()
        written: dict[str, int] = {}
        for line in output.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            body = (found.get("response") or {}).get("body") or {}
            written[found["custom_id"]] = (body.get("usage") or {}).get("completion_tokens", 0)
        return _timed(self.name, process.began, events, written, output.stat().st_ctime, prepared, folder)

    def close(self) -> None:
        """Nothing is kept."""


def _flags(args: dict[str, Any]) -> list[str]:
    """Engine arguments as a command line has them."""
    flags: list[str] = []
    for name, value in args.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{name.replace('_', '-')}")
        else:
            flags += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


class Raw:
    """`LLM.generate` with all prompts at once.

    On CPUs its engine is kept between the rounds, stopped (SIGSTOP) while others run: starting it costs more than
    the round. On GPUs it would hold the others' memory, and is started for each run.
    """

    name = "raw"

    def __init__(self, machine: Machine, workload: Workload) -> None:
        self._machine = machine
        self._checkpoint, self._args = resolved_args(machine, workload)
        self._process: Process | None = None
        self._events = Path()
        self._start_s = 0.0

    def run(self, prepared: Prepared, folder: Path, *, steps: bool = False) -> Run:
        """See `Arm.run`."""
        first = self._process is None
        if self._process is None:
            self._process = self._start(prepared, folder, steps=steps)
        process = self._process
        for one in reversed(process.tree()):
            one.resume()
        output = folder / "out.parquet"
        assert process.popen.stdin is not None
        with suppress(BrokenPipeError):  # the answer tells
            process.popen.stdin.write(f"{output}\n".encode())
            process.popen.stdin.flush()
        said = self._answer(process)
        written, _ = _token_lists([output])
        check_written(self.name, written, prepared.lengths)
        happened = {event["event"]: event for event in reversed(probe.events(self._events))}
        if "engine" not in happened:
            raise BenchError(f"{self.name}: vLLM loaded no probe: VLLM_PLUGINS must not be set for a benchmark")
        settings = happened["engine"]["settings"] | happened["engine"]["env"]
        seconds = said["ended"] - said["began"]
        run = Run(
            self.name, 0, seconds, len(written), sum(written.values()), self._start_s if first else 0.0,
            happened["first request"]["at"] - process.began if first else None, settings, self._events.parent,
        )  # fmt: skip
        if self._machine.gpus:
            self.close()
        else:
            for one in process.tree():
                one.suspend()
        return run

    def _start(self, prepared: Prepared, folder: Path, *, steps: bool) -> Process:
        self._events = folder / "events"
        env = self._machine.environment(self._events, steps=steps)
        config = folder / "config.json"
        asked = {"checkpoint": str(self._checkpoint), "engine_args": self._args, "prompts": str(prepared.prompts)}
        config.write_text(json.dumps(asked))
        command = [sys.executable, "-m", "magbatch.bench.raw_arm", str(config)]
        process = Process(command, env, folder / "log", (), piped=True)
        self._process = process
        self._start_s = self._answer(process)["ready"] - process.began
        if self._machine.engine_cores:
            pin(psutil.Process(process.popen.pid), self._machine, self._events)
        return process

    def _answer(self, process: Process) -> dict[str, Any]:
        assert process.popen.stdout is not None
        line = process.popen.stdout.readline()
        if not line:
            process.popen.wait(GRACE_S)
            raise process.failed(f"{self.name} {DIED}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """See `Arm.close`."""
        if self._process is not None:
            for one in self._process.tree():
                with suppress(psutil.NoSuchProcess):
                    one.resume()
            self._process.end()
            self._process = None
