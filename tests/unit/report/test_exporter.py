"""The endpoint of a job: its values and addresses. No failure of it holds the job up."""

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import which
from typing import Any

import httpx
import pytest
import yaml

from magbatch.engines.base import EngineLoad
from magbatch.errors import InterruptedJobError, SpecError
from magbatch.replica.board import Load, Slot, Snapshot, State, Usage
from magbatch.report import exporter as exporter_module
from magbatch.report import progress as progress_module
from magbatch.report.exporter import HEALTHY_S, Exporter
from magbatch.report.metrics import METRICS
from magbatch.report.progress import JobProgress
from magbatch.spec import JobSpec, parse
from magbatch.spec.secrets import PUSH_PASSWORD, PUSH_USER
from magbatch.totals import Totals

PUSHGATEWAY = which("prometheus-pushgateway")
BCRYPT_OF_SESAME = "$2b$04$fV1amQziSWgmZ0Z3cKdLaet8eSjE/PiFfZx82pTc8Qwul9bp4hfAG"
DONE = Totals(
    answered=7, failed=3, records=14, prompt_tokens=70, cached_tokens=5, reasoning_tokens=900, answer_tokens=90,
    squared_tokens=90_000, latency_ms=3500, by_code={"internal": 2, "prompt_too_long": 1},
    by_status={"complete": 12, "truncated": 2}, by_latency={"0.5": 7}, by_reasoning={"64": 14}, by_answer={"16": 14},
)  # fmt: skip
USE = Usage(1.5, 4, 6, 120, 5000, 2, {"0.025": 6})
PLACES = [
    Slot(0, State.SERVING, DONE, USE, Load(8, 9, EngineLoad(4, 3, 0.25, 4)), 100.0, 3),
    Slot(1, State.STARTING, seconds=20.0, joins=1),
]
FLEET = Snapshot(DONE, PLACES, False, engine_deaths=2, starved_s=1.5, input_errors=1)


def spec(**metrics: Any) -> JobSpec:
    return parse(
        yaml.safe_dump(
            {
                "name": "small",
                "model": {"source": "builtin:tiny", "engine": "fake"},
                "input": {"path": "/in", "columns": {"prompt": "question"}},
                "output": {"path": "/out"},
                "replicas": {"gpus": 0},
                "cost": {"device_hour": 36, "currency": "EUR"},
                "deadline": "2026-11-30T08:00:00+01:00",
                "metrics": {"port": 0} | metrics,
            }
        )
    )


class Job:
    """A job that serves its numbers, and what it said."""

    def __init__(self, **metrics: Any) -> None:
        self.spec = spec(**metrics)
        self.progress = JobProgress(self.spec, 20, 0)
        self.said: list[str] = []
        self.exporter = Exporter(self.spec, self.progress, self.said.append)

    def get(self, path: str) -> httpx.Response:
        (url,) = (line.removeprefix("metrics: ") for line in self.said if line.startswith("metrics: http"))
        return httpx.get(url.removesuffix("/metrics") + path, trust_env=False)

    def numbers(self) -> dict[str, float]:
        """Series to value; the labels that all have are left out."""
        found = {}
        for line in self.get("/metrics").text.splitlines():
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                series = re.sub(r'job_name="small",?|model="builtin:tiny",?', "", series)
                found[series.replace(",}", "}").replace("{}", "")] = float(value)
        return found


@pytest.fixture
def job() -> Iterator[Job]:
    made = Job()
    with made.exporter.serving():
        yield made


def test_the_endpoint_knows_the_whole_fleet(job: Job) -> None:
    job.progress.observe(FLEET)
    found = job.numbers()
    expected = {
        "magbatch_rows_planned": 20,
        'magbatch_rows_committed_total{outcome="answered"}': 7,
        'magbatch_rows_committed_total{outcome="failed"}': 3,
        'magbatch_rows_failed_total{code="internal"}': 2,
        'magbatch_tokens_total{kind="reasoning"}': 900,
        'magbatch_tokens_total{kind="cached"}': 5,
        'magbatch_records_total{reasoning_status="truncated"}': 2,
        "magbatch_truncated_ratio": 2 / 14,
        "magbatch_row_latency_seconds_sum": 3.5,
        'magbatch_row_latency_seconds_bucket{le="0.25"}': 0,
        'magbatch_row_latency_seconds_bucket{le="+Inf"}': 7,
        "magbatch_reasoning_length_tokens_sum": 900,
        "magbatch_answer_length_tokens_count": 14,
        'magbatch_replicas{state="serving"}': 1,
        'magbatch_replicas{state="starting"}': 1,
        'magbatch_replicas{state="lost"}': 0,
        "magbatch_replica_restarts_total": 2,
        "magbatch_engine_deaths_total": 2,
        'magbatch_replica_rows_total{replica="0"}': 10,
        'magbatch_replica_tokens_total{replica="0"}': 990,
        'magbatch_rows_in_flight{replica="0"}': 8,
        'magbatch_rows_waiting{replica="0"}': 9,
        'magbatch_engine_running_sequences{replica="0"}': 4,
        'magbatch_engine_queued_requests{replica="0"}': 3,
        'magbatch_engine_kv_cache_usage_ratio{replica="0"}': 0.25,
        'magbatch_engine_preemptions_total{replica="0"}': 4,
        "magbatch_starved_seconds_total": 1.5,
        "magbatch_commit_duration_seconds_count": 6,
        "magbatch_commit_duration_seconds_sum": 0.12,
        "magbatch_commit_bytes_total": 5000,
        "magbatch_commit_retries_total": 2,
        'magbatch_storage_errors_total{side="input"}': 1,
        'magbatch_storage_errors_total{side="output"}': 2,
        "magbatch_device_seconds_total": 120,
        'magbatch_cost_total{currency="EUR"}': 1.2,
        "magbatch_job_deadline_timestamp_seconds": job.spec.deadline.timestamp() if job.spec.deadline else 0,
        "magbatch_job_complete": 0,
    }
    assert {name: found.get(name) for name in expected} == pytest.approx(expected)
    assert not any('replica="1"' in series and "in_flight" in series for series in found), "it does not serve yet"


def test_every_metric_that_is_declared_has_a_value(job: Job) -> None:
    later = DONE.plus(Totals(answered=1, records=1, reasoning_tokens=50, squared_tokens=2500))
    job.progress.observe(FLEET)
    job.progress.observe(Snapshot(later, PLACES, False))
    series = {name.partition("{")[0] for name in job.numbers()}
    assert {name for metric in METRICS.values() for name in metric.exposed} == series


def test_no_series_waits_for_the_first_row(job: Job) -> None:
    working = Slot(0, State.SERVING, load=Load(8, 9, EngineLoad(4, 3, 0.25, 0)))
    job.progress.observe(Snapshot(slots=[working], starting=False))
    before = job.numbers()
    assert before["magbatch_truncated_ratio"] == 0
    job.progress.observe(Snapshot(Totals(answered=4, records=4, by_status={"truncated": 1}), [working], False))
    after = job.numbers()
    assert after["magbatch_truncated_ratio"] == 0.25
    assert {name for name in after if "eta" not in name} == {name for name in before if "eta" not in name}


def test_rows_are_left_out_until_those_of_earlier_runs_are_known() -> None:
    job = Job()
    job.progress = JobProgress(job.spec, 20, 5)
    job.exporter = Exporter(job.spec, job.progress, job.said.append)
    with job.exporter.serving():
        job.progress.observe(FLEET)
        assert not any(name.startswith(("magbatch_rows_committed", "magbatch_tokens")) for name in job.numbers())
        job.progress.set_earlier_totals(Totals(answered=5, records=5, by_status={"complete": 5}))
        assert job.numbers()['magbatch_rows_committed_total{outcome="answered"}'] == 12


@pytest.mark.skipif(which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_promtool_finds_nothing_to_object_to(job: Job) -> None:
    job.progress.observe(FLEET)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=job.get("/metrics").content, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_health_is_whether_the_run_looks_after_its_fleet(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = job.get("/healthz")
    assert (answer.status_code, answer.text) == (200, "ok\n")
    now = progress_module.time.monotonic()
    job.progress.observe(FLEET)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now + HEALTHY_S + 5)
    answer = job.get("/healthz")
    assert answer.status_code == 503
    assert "not observed its fleet" in answer.text
    job.progress.end_fleet()
    assert job.get("/healthz").status_code == 200, "the proof of a large job may take long"
    assert job.get("/").status_code == 404


def test_it_is_served_to_this_machine_alone_unless_the_spec_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec().metrics.bind == "127.0.0.1"
    wide = Job(bind="0.0.0.0")
    with wide.exporter.serving():
        assert f"http://{socket.gethostname()}:" in wide.said[0]
    six = Job(bind="::1")
    with six.exporter.serving():
        assert six.get("/healthz").status_code == 200


def test_a_port_that_is_taken_stops_only_who_has_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match=rf"metrics\.port {port}.*in use"), Job(port=port).exporter.serving():
            pass
        monkeypatch.setattr(exporter_module, "METRICS_PORT", port)
        job = Job(port=None)
        with job.exporter.serving():
            assert job.get("/healthz").status_code == 200
            assert f":{port}/" not in job.said[0]
    for bind in ("no.such.host", "a..b", "x" * 70, "[::1"):
        with pytest.raises(SpecError, match=r"metrics\.bind"), Job(bind=bind).exporter.serving():
            pass


def test_metrics_can_be_left_out() -> None:
    job = Job(enabled=False)
    with job.exporter.serving():
        assert job.said == []


def test_a_file_tells_prometheus_where_the_job_is_for_as_long_as_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "targets"
    job = Job(file_sd=str(folder))
    with job.exporter.serving():
        (file,) = folder.iterdir()
        assert file.name.startswith("magbatch-small-")
        (group,) = json.loads(file.read_text())
        assert group["labels"]["job_name"] == "small"
        (target,) = group["targets"]
        assert job.said[0] == f"metrics: http://{target}/metrics"
    assert list(folder.iterdir()) == []
    with pytest.raises(InterruptedJobError), job.exporter.serving():
        raise InterruptedJobError("stopped")
    assert list(folder.iterdir()) == [], "a job that was stopped is not one that was killed"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SpecError, match=r"metrics\.file_sd"), Job(file_sd=str(blocked)).exporter.serving():
        pass


@contextmanager
def gateway(folder: Path, *more: str) -> Iterator[str]:
    """A real Pushgateway; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(PUSHGATEWAY), f"--web.listen-address={address}", *more], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://{address}/-/ready", trust_env=False).status_code in {200, 401}:
                    break
            time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(PUSHGATEWAY is None, reason="no Pushgateway here (Debian: prometheus-pushgateway)")
def test_a_gateway_has_the_last_numbers(tmp_path: Path) -> None:
    with gateway(tmp_path) as address:
        job = Job(push_gateway=f"http://{address}")
        with job.exporter.serving():
            job.progress.finish(DONE)
        found = httpx.get(f"http://{address}/metrics", trust_env=False).text
    common = 'instance="",job="magbatch",job_name="small",model="builtin:tiny"'
    assert f"magbatch_job_complete{{{common}}} 1\n" in found
    assert 'outcome="answered"} 7\n' in found
    assert job.said[1:] == []


@pytest.mark.skipif(PUSHGATEWAY is None, reason="no Pushgateway here (Debian: prometheus-pushgateway)")
def test_a_gateway_that_asks_for_a_password_is_given_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "web.yaml").write_text(f"basic_auth_users:\n  prom: {BCRYPT_OF_SESAME}\n")
    with gateway(tmp_path, f"--web.config.file={tmp_path / 'web.yaml'}") as address:
        job = Job(push_gateway=f"http://{address}")
        with job.exporter.serving():
            job.progress.finish(DONE)
        (said,) = job.said[1:]
        assert "401" in said
        assert f"{PUSH_USER} and {PUSH_PASSWORD} in the environment" in said
        monkeypatch.setenv(PUSH_USER, "prom")
        monkeypatch.setenv(PUSH_PASSWORD, "sesame")
        job = Job(push_gateway=f"http://{address}")
        with job.exporter.serving():
            job.progress.finish(DONE)
        found = httpx.get(f"http://{address}/metrics", auth=("prom", "sesame"), trust_env=False).text
    assert 'outcome="answered"} 7\n' in found
    assert job.said[1:] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"push_gateway": url}
        for url in ("host:9091", "ftp://host", "http://", "http://a..b:9091", "http://[::1", "http://h:0")
    ]
    + [{"file_sd": folder} for folder in ("", "s3://bucket/folder")],
    ids=str,
)
def test_where_numbers_cannot_go_is_refused_before_anything_starts(wrong: dict[str, str]) -> None:
    (name,) = wrong
    with pytest.raises(SpecError, match=rf"metrics\.{name}: .*write "):
        spec(**wrong)


def test_a_gateway_that_is_away_is_said_once_and_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "PUSH_INTERVAL_S", 0.01)
    pushes = threading.Semaphore(0)
    push = Exporter._push

    def counted(self: Exporter, url: str) -> None:
        push(self, url)
        pushes.release()

    monkeypatch.setattr(Exporter, "_push", counted)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    job = Job(push_gateway=f"http://127.0.0.1:{port}")
    with job.exporter.serving():
        for _ in range(3):
            assert pushes.acquire(timeout=30)
    assert len([line for line in job.said if "push_gateway" in line]) == 1


def test_a_scraper_that_comes_regularly_is_waited_for_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    class Scraper(threading.Event):
        """Comes once more while it is waited for."""

        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0)
            assert 'magbatch_job_complete{job_name="small",model="builtin:tiny"} 1.0' in job.get("/metrics").text
            return super().wait(timeout)

    for scrapes, pause_s, wait in ((0, 0.0, False), (1, 0.0, False), (2, 0.3, True)):
        waited.clear()
        job = Job()
        with job.exporter.serving():
            monkeypatch.setattr(job.exporter, "_final_scraped", Scraper())
            for _ in range(scrapes):
                time.sleep(pause_s)
                job.get("/metrics")
            job.progress.finish(DONE)
        assert len(waited) == wait, scrapes
        assert all(0 < seconds <= 1.5 * 0.3 + 5 for seconds in waited)
    job = Job()
    with job.exporter.serving():
        job.get("/metrics")
        time.sleep(0.05)
        job.get("/metrics")
        time.sleep(0.5)  # the next would have been due long ago: it comes no more
        job.progress.finish(DONE)
        monkeypatch.setattr(job.exporter, "_final_scraped", Scraper())
        waited.clear()
    assert waited == []


def test_the_last_numbers_can_be_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(exporter_module.time, "sleep", slept.append)
    job = Job(linger_s=30)
    with job.exporter.serving():
        pass
    assert slept == [], "a job that was interrupted goes at once"
    job = Job(linger_s=30)
    with job.exporter.serving():
        job.progress.finish(DONE)
    assert slept == [30]
