"""An input whose storage goes away while it is read: the job waits, and no row becomes a dead letter for it."""

from collections.abc import Iterator

import pytest
from fault_proxy import FaultProxy
from magbatch_cli import JobFiles, magbatch, read, start, wait_until

from magbatch.storage import open_store

ROWS = 60
REFUSALS = 8  # an attempt at a shard takes two, and no client tries a missing bucket again of its own accord


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint.removeprefix("http://"), seed=5) as proxy:
        yield proxy


@pytest.mark.fire
def test_an_input_whose_bucket_is_away_is_waited_for(job: JobFiles, s3: str, proxy: FaultProxy) -> None:
    job.write_input(ROWS)
    open_store(s3).write("in/a.parquet", (job.input / "a.parquet").read_bytes())
    spec = job.write_spec(input={"path": f"{s3}/in/", "columns": {"id": "id", "prompt": "question"}})
    process = start("run", spec, log=job.folder / "log", AWS_ENDPOINT_URL=proxy.endpoint)
    frozen = job.output / "_magbatch" / "spec.yaml"
    wait_until(lambda: frozen.exists() or process.poll() is not None, "the job to begin")
    proxy.add("no_bucket")
    refused = lambda: proxy.injected["no_bucket"] >= REFUSALS  # noqa: E731
    wait_until(lambda: refused() or process.poll() is not None, "refusals")
    assert process.poll() is None, (job.folder / "log").read_text()
    assert not list(job.output.glob("results/*"))
    proxy.clear()
    assert process.wait(240) == 0, (job.folder / "log").read_text()
    assert sorted(row["id"] for row in read(job.output)) == sorted(f"id-{index}" for index in range(ROWS))
    assert not [path for path in job.output.glob("errors/*.parquet") if ".n0." not in path.name]
    assert magbatch("verify", str(job.output)).returncode == 0
