"""Fixtures of the integration tests."""

import json
from pathlib import Path
from typing import Any

import pytest
from magbatch_cli import JobFiles, magbatch


@pytest.fixture
def job(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The main job, once: its output and what `--json` said."""
    output = tmp_path_factory.mktemp("quickstart") / "out"
    done = magbatch("run", "jobs/quickstart.yaml", "--set", f"output.path={output}", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return output, json.loads(done.stdout)
