"""Runs the command as a user does: a process of its own, real Ray, real storage."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "magbatch"]


def magbatch(*args: str, timeout: float = 400, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the project's root and wait for it."""
    return subprocess.run(
        [*COMMAND, *args], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=timeout, check=False
    )


def start(*args: str, log: Path, **env: str) -> subprocess.Popen[bytes]:
    """Run the command in a process group of its own, as a terminal does."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [*COMMAND, *args], cwd=ROOT, env=os.environ | env, stdout=file, stderr=file, start_new_session=True
        )


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
    """Those of them that run and have a text in their command line; Ray shows there what a worker does."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # gone meanwhile, or a zombie
            if text in " ".join(process.cmdline()):
                found.append(process)
    return found


def alive(processes: list[psutil.Process]) -> list[str]:
    """Those of them that still run."""
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
    """How often the fake engine was asked for each row."""
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
    """What was committed when something was killed must never be asked for again.

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
