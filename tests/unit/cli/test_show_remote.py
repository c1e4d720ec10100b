"""Jobs of a cluster are shown one a line, each with the command that follows."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from magbatch.cli.show_remote import print_cancelled, print_jobs, print_submitted
from magbatch.remote import ClusterJob

ADDRESS = "http://head:8265"
JOB = ClusterJob(
    "daily-1", "daily", "running", "s3://b/out", "0.2.0", datetime(2026, 11, 24, 5, tzinfo=UTC), None, "", None
)


def test_jobs_are_listed_with_their_times_and_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    print_jobs([JOB], ADDRESS)
    assert capsys.readouterr().out.splitlines() == [
        "daily-1  running    2026-11-24 05:00:00 to -                   (UTC)  s3://b/out",
        f"1 job at {ADDRESS}",
        f"Next: magbatch status ID --address {ADDRESS}",
    ]
    print_jobs([], ADDRESS)
    assert capsys.readouterr().out.endswith(f"Next: magbatch submit SPEC --address {ADDRESS}\n")


def test_a_submitted_job_names_its_local_paths(capsys: pytest.CaptureFixture[str]) -> None:
    print_submitted("daily-1", "daily", "/srv/out", ADDRESS, ["/srv/out"], as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        f"daily: submitted to {ADDRESS} as daily-1",
        "  output: /srv/out",
        "  note: /srv/out must exist, with this path, on every machine of the cluster",
        f"Next: magbatch logs -f daily-1 --address {ADDRESS}",
    ]
    print_submitted("daily-1", "daily", "/srv/out", ADDRESS, [], as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "id": "daily-1", "job": "daily", "output": "/srv/out", "address": ADDRESS,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "following"),
    [
        ("stopped", f"magbatch resume daily-1 --address {ADDRESS}"),
        ("succeeded", "magbatch verify s3://b/out"),
        ("failed", f"magbatch logs daily-1 --address {ADDRESS}"),
    ],
)
def test_a_cancelled_job_names_what_follows(capsys: pytest.CaptureFixture[str], state: str, following: str) -> None:
    print_cancelled(replace(JOB, state=state), ADDRESS, was_over=state != "stopped")
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == f"daily-1: {'' if state == 'stopped' else 'had ended already: '}{state}"
    assert second.endswith(": s3://b/out")
    assert last == f"Next: {following}"
