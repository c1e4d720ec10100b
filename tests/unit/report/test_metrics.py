"""Every metric is declared once, by the ecosystem's rules, and has values only as it was declared."""

import re

import pytest
from prometheus_client import generate_latest

from magbatch.report import metrics
from magbatch.report.metrics import METRICS, Declared, Kind, Values, registry

COMMON = {"job_name": "j", "model": "m"}
FORBIDDEN = {"row_id", "id", "path", "message", "host", "pid", "actor", "attempt", "shard"}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_names_and_labels_follow_the_rules(metric: Declared) -> None:
    assert re.fullmatch(r"magbatch_[a-z][a-z0-9_]*[a-z0-9]", metric.name)
    assert not metric.name.endswith("_total"), "the format appends it"
    assert not re.search(r"_(ms|milliseconds|minutes|hours|kb|mb|percent)(_|$)", metric.name), "base units"
    assert metric.help.endswith(".")
    assert not FORBIDDEN & set(metric.labels), "a series for each of those would be without end"
    assert not set(metric.labels) & set(metrics.COMMON)


def test_a_value_needs_the_labels_that_were_declared() -> None:
    values = Values(COMMON)
    values.set(metrics.ROWS_COMMITTED, 3, outcome="answered")
    with pytest.raises(AssertionError, match="outcome"):
        values.set(metrics.ROWS_COMMITTED, 3)
    with pytest.raises(AssertionError):
        values.set(metrics.ROWS_PLANNED, 3, row_id="a-1")


def test_each_kind_is_written_as_prometheus_reads_it() -> None:
    values = Values(COMMON)
    values.set(metrics.ROWS_COMMITTED, 3, outcome="answered")
    values.set(metrics.ROWS_COMMITTED, 1, outcome="failed")
    values.set(metrics.ROWS_PLANNED, 10)
    values.observe(metrics.ROW_LATENCY, [("0.1", 1), ("+Inf", 3)], 4.5)
    lines = generate_latest(registry(lambda: values)).decode().splitlines()
    common = 'job_name="j",model="m"'
    assert "# TYPE magbatch_rows_committed_total counter" in lines
    assert f'magbatch_rows_committed_total{{{common},outcome="answered"}} 3.0' in lines
    assert f'magbatch_rows_committed_total{{{common},outcome="failed"}} 1.0' in lines
    assert f"magbatch_rows_planned{{{common}}} 10.0" in lines
    assert 'magbatch_row_latency_seconds_bucket{job_name="j",le="0.1",model="m"} 1.0' in lines
    assert f"magbatch_row_latency_seconds_sum{{{common}}} 4.5" in lines
    assert f"magbatch_row_latency_seconds_count{{{common}}} 3.0" in lines


def test_what_queries_name_is_known() -> None:
    assert metrics.ROWS_COMMITTED.exposed == ("magbatch_rows_committed_total",)
    assert metrics.ROWS_PLANNED.exposed == ("magbatch_rows_planned",)
    assert metrics.ROW_LATENCY.kind is Kind.HISTOGRAM
    assert metrics.ROW_LATENCY.exposed[0] == "magbatch_row_latency_seconds_bucket"
