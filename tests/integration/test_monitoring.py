"""A real Prometheus, with the configuration and the rules that are shipped, follows the main job."""

import json
from pathlib import Path
from typing import Any

import dashboard
import pytest
from support.prometheus_server import Prometheus

Quickstart = tuple[Path, dict[str, Any]]
# Of these there is nothing to show in a job without failures, price or deadline.
MAY_BE_EMPTY = ("magbatch_rows_failed", "magbatch_cost", "magbatch_job_deadline", "magbatch_job_eta")


@pytest.fixture(scope="module")
def followed(prometheus: Prometheus | None, quickstart: Quickstart) -> tuple[Prometheus, dict[str, Any]]:
    """Prometheus after the main job, and the job's manifest."""
    if prometheus is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    return prometheus, json.loads((quickstart[0] / "_magbatch/manifest.json").read_text())


def last(server: Prometheus, metric: str, by: str) -> dict[str, float]:
    """The last values that were scraped of a metric, by one label."""
    found = server.query(f"last_over_time({metric}[1h])")
    return {series["metric"].get(by, ""): float(series["value"][1]) for series in found}


def test_what_was_scraped_last_is_the_manifest(followed: tuple[Prometheus, dict[str, Any]]) -> None:
    server, manifest = followed
    assert last(server, "magbatch_job_complete", "job_name") == {"quickstart": 1}
    assert last(server, "magbatch_rows_planned", "job_name") == {"quickstart": manifest["planned_rows"]}
    outcomes = {name: manifest[name] for name in ("answered", "failed")}
    assert last(server, "magbatch_rows_committed_total", "outcome") == outcomes
    kinds = ("prompt", "cached", "reasoning", "answer")
    assert last(server, "magbatch_tokens_total", "kind") == {kind: manifest[f"{kind}_tokens"] for kind in kinds}
    statuses = {
        name: count for name, count in last(server, "magbatch_records_total", "reasoning_status").items() if count
    }
    assert statuses == manifest["by_status"]


def test_the_job_was_seen_at_work(followed: tuple[Prometheus, dict[str, Any]]) -> None:
    server, _ = followed
    for state in ("starting", "serving"):
        (series,) = server.query(f'max_over_time(magbatch_replicas{{state="{state}"}}[1h])')
        assert series["value"][1] == "1"
    # The engine of so short a job may be idle whenever it is looked at: what vLLM tells of itself at work is
    # in test_vllm.py.
    for of_the_engine in ("running_sequences", "queued_requests", "kv_cache_usage_ratio"):
        assert len(server.query(f"max_over_time(magbatch_engine_{of_the_engine}[1h])")) == 1


def test_every_query_of_the_dashboard_is_answered(followed: tuple[Prometheus, dict[str, Any]]) -> None:
    server, _ = followed
    (at_work,) = server.query("max(max_over_time(timestamp(magbatch_rows_in_flight)[1h:1s]))")
    queries = dashboard.queries()
    assert len(queries) > 20
    empty = [query for query in queries if not server.query(query, at=float(at_work["value"][1]))]
    assert [query for query in empty if not any(name in query for name in MAY_BE_EMPTY)] == []


def test_rules_are_evaluated_and_no_alert_fires_for_a_healthy_job(followed: tuple[Prometheus, dict[str, Any]]) -> None:
    server, _ = followed
    rules = server.rules()
    assert {rule["type"] for rule in rules} == {"recording", "alerting"}
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []
