"""Runs the command as a user does: a process of its own, real Ray, real storage."""

import json
import os
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "magbatch"]


def magbatch(*args: str, timeout: float = 400, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the project's root and wait for it."""
    return subprocess.run(
        [*COMMAND, *args], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=timeout, check=False
    )


@dataclass(frozen=True)
class SecondTerminal:
    """A command next to a running job, with the environment's vLLM before and after it.

    Attributes:
        status: Result of `uv run --no-sync magbatch status`.
        sync: Changes that uv would make to the environment, by `uv sync --check`.
        before, after: Inode and modification time in nanoseconds of each file of vLLM's `.dist-info`, by name.
    """

    status: subprocess.CompletedProcess[str]
    sync: subprocess.CompletedProcess[str]
    before: dict[str, tuple[int, int]]
    after: dict[str, tuple[int, int]]


def second_terminal(output: Path) -> SecondTerminal:
    """Look at a job from another terminal, as the README says, and ask uv what it would do to the environment."""

    def uv(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["uv", *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    def files() -> dict[str, tuple[int, int]]:
        (info,) = Path(sysconfig.get_path("purelib")).glob("vllm*.dist-info")
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in info.iterdir()}

    before = files()
    status = uv("run", "--no-sync", "magbatch", "status", str(output))
    return SecondTerminal(status, uv("sync", "--check", "--offline"), before, files())


Scrape = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by metric name and labels, without the labels that all series have."""


def parse_metrics(text: str) -> Scrape:
    """Parse the answer of a metrics endpoint."""
    return {
        (
            sample.name,
            frozenset((k, v) for k, v in sample.labels.items() if k not in {"job_name", "model"}),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(folder: Path, *args: str, timeout: float = 400) -> tuple[subprocess.CompletedProcess[str], list[Scrape]]:
    """Run the command, and read its endpoint again and again, until the last numbers, which it keeps for a while."""
    targets, scrapes = folder / "targets", list[Scrape]()
    settings = ["--set", f"metrics.file_sd={targets}", "--set", "metrics.linger_s=3", "--set", "metrics.port=0"]
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(0.25):
            # Not there yet, or no longer: who reads it meets a moment before or after its life.
            with suppress(OSError, ValueError, httpx.HTTPError):
                (file,) = targets.glob("*.json")
                (target,) = json.loads(file.read_text())[0]["targets"]
                scrapes.append(parse_metrics(httpx.get(f"http://{target}/metrics", trust_env=False).text))

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        return magbatch(*args, *settings, timeout=timeout), scrapes
    finally:
        over.set()
        thread.join()


def as_manifest(scrape: Scrape) -> dict[str, Any]:
    """The numbers that an endpoint and a manifest share, by the manifest's names."""

    def one(name: str, **labels: str) -> float:
        return scrape[name, frozenset(labels.items())]

    def by(name: str) -> dict[str, float]:
        return {next(iter(labels))[1]: value for (found, labels), value in scrape.items() if found == name and value}

    tokens = {f"{kind}_tokens": one("magbatch_tokens_total", kind=kind) for kind in ("prompt", "cached", "reasoning")}
    return tokens | {
        "answer_tokens": one("magbatch_tokens_total", kind="answer"),
        "planned_rows": one("magbatch_rows_planned"),
        "answered": one("magbatch_rows_committed_total", outcome="answered"),
        "failed": one("magbatch_rows_committed_total", outcome="failed"),
        "by_code": by("magbatch_rows_failed_total"),
        "by_status": by("magbatch_records_total"),
        "records": one("magbatch_reasoning_length_tokens_count"),
        "latency_ms": round(1000 * one("magbatch_row_latency_seconds_sum")),
    }


def check_end(scrape: Scrape, output: Path) -> None:
    """The last numbers of a job are its manifest's."""
    assert scrape["magbatch_job_complete", frozenset()] == 1
    manifest = json.loads((output / "_magbatch/manifest.json").read_text())
    found = as_manifest(scrape)
    assert found == {name: manifest[name] for name in found}


def start(*args: str, log: Path, **env: str) -> subprocess.Popen[bytes]:
    """Run the command in a process group of its own, as a terminal does."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [*COMMAND, *args], cwd=ROOT, env=os.environ | env, stdout=file, stderr=file, start_new_session=True
        )


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    """Wait for a condition; a test that never gets there fails with its name."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.1)


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Every process below a running command: Ray's, the replicas', the engines'."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def named(processes: list[psutil.Process], text: str) -> list[psutil.Process]:
    """Select running processes with a text in their command line, in which Ray names a worker's task."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has ended, or is a zombie
            if text in " ".join(process.cmdline()):
                found.append(process)
    return found


def alive(processes: list[psutil.Process]) -> list[str]:
    """Command lines of the processes that still run."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:80])
        except psutil.NoSuchProcess:
            continue
    return found


def peak_memory(process: subprocess.Popen[bytes], wanted: dict[str, str]) -> dict[str, int]:
    """Largest unshared memory (bytes) of a command and its children until it ends, by a text in their command line."""
    peaks = dict.fromkeys(wanted, 0)
    while process.poll() is None:
        for one in [psutil.Process(process.pid), *descendants(process)]:
            try:
                line, used = " ".join(one.cmdline()), one.memory_full_info().uss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            for name, text in wanted.items():
                if text in line:
                    peaks[name] = max(peaks[name], used)
        time.sleep(0.2)
    return peaks


def committed(output: Path) -> int:
    """Rows that an output holds, by the names of its objects."""
    return sum(int(path.name.split(".n")[1].split(".")[0]) for path in output.glob("*/*.n*.parquet"))


def read(output: Path | str, kind: str = "results") -> list[dict[str, Any]]:
    """All records of a kind."""
    return pa.concat_tables(
        [pq.read_table(path) for path in sorted(Path(output).glob(f"{kind}/*.parquet"))]
    ).to_pylist()


def journal(path: Path) -> dict[str, int]:
    """Number of requests to the fake engine by row id."""
    counts: dict[str, int] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        counts[line.split()[0]] = counts.get(line.split()[0], 0) + 1
    return counts


class JobFiles:
    """A small job on the fake engine, in a directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.input = folder / "input"
        self.output = folder / "output"
        self.spec = folder / "job.yaml"
        self.journal = folder / "journal"
        self.engine: dict[str, Any] = {"max_num_seqs": 8, "journal": str(self.journal)}
        self.more: dict[str, Any] = {}

    def write_input(self, rows: int, name: str = "a.parquet", **columns: list[Any]) -> None:
        self.input.mkdir(exist_ok=True)
        data: dict[str, Any] = {
            "id": [f"id-{i}" for i in range(rows)],
            "question": [f"What is {i}?" for i in range(rows)],
        }
        pq.write_table(pa.table(data | columns), self.input / name)

    def write_spec(self, **sections: Any) -> str:
        spec: dict[str, Any] = {
            "name": "test",
            "model": {"source": "builtin:tiny", "engine": "fake", "engine_args": self.engine},
            "input": {"path": str(self.input), "columns": {"id": "id", "prompt": "question"}},
            "sampling": {"max_tokens": 400},
            "limits": {"max_prompt_tokens": 2000},
            "replicas": {"gpus": 0},
            "output": {"path": str(self.output), "commit_interval_s": 0.3},
        }
        for name, section in (self.more | sections).items():
            spec[name] = spec.get(name, {}) | section if isinstance(section, dict) else section
        self.spec.write_text(yaml.safe_dump(spec))
        return str(self.spec)


class Bill:
    """Checks that no row that was committed before a kill is asked again.

    Args:
        job: The job that is killed.
    """

    def __init__(self, job: JobFiles) -> None:
        self._job = job
        self._points: list[tuple[set[str], int]] = []

    def note(self) -> None:
        """Note what is committed now, and how far the engine's journal has come since."""
        done = {row["row_id"] for kind in ("results", "errors") for row in self._rows(kind)}
        self._points.append((done, len(self._asked())))

    def check(self) -> None:
        """No request after a point was for a row that was committed before it."""
        asked = self._asked()
        for done, lines in self._points:
            assert not done.intersection(asked[lines:]), "a committed row was asked again"

    def _asked(self) -> list[str]:
        journal = self._job.journal
        return [line.split()[0] for line in journal.read_text().splitlines()] if journal.exists() else []

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        return read(self._job.output, kind) if list(self._job.output.glob(f"{kind}/*.parquet")) else []
