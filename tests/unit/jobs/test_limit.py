"""A sample has an output of its own, in the bucket of the job's output."""

import os

import pytest
from support.small_job import SmallJob

from magbatch.jobs.limit import limited
from magbatch.spec import parse


@pytest.mark.parametrize(
    ("output", "sample"),
    [
        ("s3://acme-results", "s3://acme-results/limit-5"),
        ("s3://acme-results/", "s3://acme-results/limit-5"),
        ("s3://acme-results//", "s3://acme-results/limit-5"),
        ("s3://acme-results/november", "s3://acme-results/november-limit-5"),
        ("s3://acme-results//november/", "s3://acme-results//november-limit-5"),
        ("/data/out", "/data/out-limit-5"),
        ("/data/out/", "/data/out-limit-5"),
        ("out/", f"{os.getcwd()}/out-limit-5"),
        (".", f"{os.getcwd()}-limit-5"),
        ("/", "/limit-5"),
        ("//", "/limit-5"),
    ],
)
def test_a_sample_stays_in_the_outputs_bucket(job: SmallJob, output: str, sample: str) -> None:
    spec = job.spec()
    written = parse(spec.with_output(output).to_yaml())  # as a spec's file gives it
    assert limited(written, 5).output.path == sample
    assert limited(spec.with_output(output), 5).output.path.endswith("limit-5")
