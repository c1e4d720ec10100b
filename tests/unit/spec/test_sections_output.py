"""Wrong sections of the output, limits, metrics, cost and schedule are named, with what would be right."""

from typing import Any

import pytest
from support.small_spec import complaint, complaint_about, spec


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("limits.zzz", 1, "the fields here are max_prompt_tokens, max_images"),
        ("output.path", "s3://", "names no bucket: write s3://bucket/prefix"),
        ("output.path", "hdfs://x", "only local paths and s3:// are known"),
        ("output.commit_interval_s", 0, "write a number above 0 (it is 0)"),
        ("limits.max_failed_rows", -1, "greater than or equal to 0"),
        ("limits.max_failed_rows", "101%", "a share of all rows such as 5%"),
        ("limits.max_failed_rows", "many", "a share of all rows such as 5%"),
        ("limits.max_failed_rows", 0.05, "a share of all rows such as 5%"),
        ("limits.max_failed_rows", True, "a share of all rows such as 5%"),
    ],
)
def test_a_wrong_field_is_named_with_what_to_write(field: str, value: Any, right: str) -> None:
    assert right in complaint_about(field, value)


@pytest.mark.parametrize(
    ("field", "schedule", "right"),
    [
        ("schedule.cron", {"cron": "0 25 * * *"}, "such as `0 6 * * *`: Bad hour (it is '0 25 * * *')"),
        ("schedule.cron", {"cron": "0 6 * *"}, "it has 4 fields, not 5 (it is '0 6 * *')"),
        ("schedule.cron", {"cron": "0 6 30 2 *"}, "Bad day-of-month"),
        ("schedule.timezone", {"cron": "0 6 * * *", "timezone": "Europe"}, "no such time zone: write an IANA name"),
        (
            "schedule.timezone",
            {"cron": "0 6 * * *", "timezone": "Mars/Olympus"},
            "such as Europe/Paris or UTC (it is 'Mars/Ol",
        ),
        ("schedule.timezone", {"cron": "0 6 * * *", "timezone": "../etc"}, "no such time zone"),
        ("schedule.missed", {"cron": "0 6 * * *", "missed": "all"}, "write catch_up or skip (it is 'all')"),
        ("schedule.timezon", {"cron": "0 6 * * *", "timezon": "UTC"}, "did you mean `timezone`?"),
        ("schedule.cron", {"timezone": "UTC"}, "is missing: Start times in cron's five fields"),
    ],
)
def test_a_wrong_schedule_is_named_with_what_to_write(field: str, schedule: Any, right: str) -> None:
    said = complaint(schedule=schedule)
    assert said.count("\n") == 1
    assert right in said.partition(f"\n  {field}: ")[2]


@pytest.mark.parametrize(
    ("limit", "planned", "allowed"),
    [(None, 1000, None), (0, 1000, 0), (7, 3, 7), ("5%", 1000, 50), ("0.1%", 999, 0), ("33.3%", 10, 3), ("100%", 7, 7)],
)
def test_a_share_of_failed_rows_is_rounded_down(limit: int | str | None, planned: int, allowed: int | None) -> None:
    assert spec(limits__max_failed_rows=limit).limits.failed_allowed(planned) == allowed


@pytest.mark.parametrize("url", ["host:9091", "ftp://host", "http://", "http://host:0", "http://host:port", ""])
def test_a_push_gateway_is_a_url(url: str) -> None:
    if url:
        assert "write http://host:9091" in complaint_about("metrics.push_gateway", url)
    assert spec(metrics__push_gateway="http://host:9091").metrics.push_gateway == "http://host:9091"


@pytest.mark.parametrize("folder", ["", "s3://bucket/x"])
def test_a_folder_for_prometheus_is_a_local_one(folder: str) -> None:
    assert "write a folder of this machine" in complaint_about("metrics.file_sd", folder)


@pytest.mark.parametrize("currency", ["euro", "eur", "€"])
def test_a_currency_is_an_iso_code(currency: str) -> None:
    assert "write three capital letters" in complaint_about("cost.currency", currency)
