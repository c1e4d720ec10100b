"""Fixtures of the integration tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from magbatch_cli import JobFiles, magbatch
from prometheus_server import Prometheus


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
def quickstart(tmp_path_factory: pytest.TempPathFactory, prometheus: Prometheus | None) -> tuple[Path, dict[str, Any]]:
    """The main job, once: its output and what `--json` said."""
    output = tmp_path_factory.mktemp("quickstart") / "out"
    settings = [f"output.path={output}"]
    if prometheus is not None:
        settings += [f"metrics.file_sd={prometheus.targets}", "metrics.port=0"]
    sets = [word for setting in settings for word in ("--set", setting)]
    done = magbatch("run", "jobs/quickstart.yaml", *sets, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return output, json.loads(done.stdout)
