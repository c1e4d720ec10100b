"""An input whose storage goes away is waited for; what only a row names, and cannot be had, is that row's matter."""

import os
from collections.abc import Iterator

import pytest
from support.fault_proxy import FaultProxy
from support.magbatch_cli import JobFiles, magbatch, read, start, wait_until

from magbatch.storage import open_store

ROWS = 60
REFUSALS = 8  # an attempt at a shard takes two, and no client tries a missing bucket again of its own accord


@pytest.fixture
def proxy(s3_endpoint: str) -> Iterator[FaultProxy]:
    with FaultProxy(s3_endpoint.removeprefix("http://"), seed=5) as proxy:
        yield proxy


def test_what_a_row_names_and_no_place_gives_is_that_rows_matter(job: JobFiles) -> None:
    """Without AWS credentials. A named pipe would be waited for, and the rest taken for a store that is away."""
    os.mkfifo(job.folder / "pipe.png")
    given: dict[str, str] = {
        "id-1": "/proc/self/mem",
        "id-3": "s3://some-bucket/picture.png",
        "id-5": "s3://x--nope-az1--x-s3/a.png",
        "id-7": "s3://arn:aws:s3:nowhere-1:123456789012:accesspoint/point/a.png",
        "id-9": str(job.folder / "pipe.png"),
        "id-11": "/dev/zero",
        "id-13": "/etc/passwd",
    }
    job.write_input(16, image=[given.get(f"id-{row}") for row in range(16)])
    columns = {"id": "id", "prompt": "question", "images": ["image"]}
    allowed = ["/proc", "/dev", str(job.folder), "s3://some-bucket", "s3://x--nope-az1--x-s3"]
    source = {"path": str(job.input), "columns": columns, "fetch_from": allowed, "fetch_timeout_s": 9}
    spec = job.write_spec(input=source)
    gone = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    done = magbatch("run", spec, **gone)
    assert done.returncode == 0, done.stderr
    codes = {row["id"]: row["error_code"] for row in read(job.output, "errors")}
    refused = dict.fromkeys(("id-7", "id-13"), "url_refused")
    assert codes == dict.fromkeys(given, "image_unfetchable") | refused
    assert len(read(job.output)) == 16 - len(given)


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
