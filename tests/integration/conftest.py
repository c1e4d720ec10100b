"""Fixtures of the integration tests."""

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from support.magbatch_cli import ROOT, JobFiles, SecondTerminal, magbatch, second_terminal
from support.prometheus_server import Prometheus


@pytest.fixture
def job(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path)


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus | None]:
    """A real one with the project's own configuration, which follows the main job; None where it is not installed."""
    if which("prometheus") is None:
        yield None
        return
    with Prometheus.running(tmp_path_factory.mktemp("prometheus")) as server:
        yield server


@pytest.fixture(scope="session")
def beside() -> list[SecondTerminal]:
    """Output of a user's second terminal while the main job's engine started; empty before the job has run."""
    return []


@pytest.fixture(scope="session")
def quickstart(
    tmp_path_factory: pytest.TempPathFactory, prometheus: Prometheus | None, beside: list[SecondTerminal]
) -> tuple[Path, dict[str, Any]]:
    """The main job, once: its output and what `--json` said."""
    output = tmp_path_factory.mktemp("quickstart") / "out"
    settings = [f"output.path={output}"]
    if prometheus is not None:
        settings += [f"metrics.file_sd={prometheus.targets}", "metrics.port=0"]
    sets = [word for setting in settings for word in ("--set", setting)]
    with ThreadPoolExecutor(1) as terminal:
        first = terminal.submit(magbatch, "run", "jobs/quickstart.yaml", *sets, "--json")
        while not first.done() and not (output / "_magbatch" / "plan.parquet").exists():
            time.sleep(0.05)
        if which("uv") is not None and Path(sys.prefix) == ROOT / ".venv":
            beside.append(second_terminal(output))
        done = first.result()
    assert done.returncode == 0, done.stdout + done.stderr
    return output, json.loads(done.stdout)
