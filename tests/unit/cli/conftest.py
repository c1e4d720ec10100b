"""Jobs that the commands work on, and a store that refuses them."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.commands import command, spec_file
from support.refusals import RefusingStore, forget_stores, refusing_store
from support.small_job import SmallJob

SPEC = """\
name: small
model: {source: "builtin:tiny", engine: fake}
input: {path: INPUT, columns: {prompt: q}}
output: {path: OUTPUT}
replicas: {gpus: 0}
"""


@pytest.fixture
def fresh() -> Iterator[None]:
    """A process that has met no store yet, as a new command has."""
    forget_stores()
    yield
    forget_stores()


@pytest.fixture
def spec(tmp_path: Path, fresh: None) -> Path:
    """The spec file of a job with two rows."""
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"q": ["What is 1?", "What is 2?"]}), tmp_path / "in/a.parquet")
    path = tmp_path / "job.yaml"
    path.write_text(SPEC.replace("INPUT", str(tmp_path / "in")).replace("OUTPUT", str(tmp_path / "out")))
    return path


@pytest.fixture
def store(fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[RefusingStore]:
    """A store that refuses every request, at AWS_ENDPOINT_URL."""
    with refusing_store() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield server


@pytest.fixture
def job(tmp_path: Path) -> SmallJob:
    job = SmallJob(tmp_path)
    job.ask(10)
    return job


@pytest.fixture
def failed(tmp_path: Path) -> SmallJob:
    """A complete job with two dead letters."""
    job = SmallJob(tmp_path)
    job.ask(5, question=["What?", None, "Who?", None, "When?"])
    path = spec_file(job)
    job.answer()
    assert command("run", path).exit_code == 0
    return job
