"""Sections about results and operation: the output, limits, metrics, cost and schedule."""

import math
import re
from datetime import UTC, datetime
from fractions import Fraction
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from magbatch.counts import counted
from magbatch.spec.section import Location, Section

METRICS_PORT = 9480  # port of the driver's metrics if the spec names none
SHARE = r"\d{1,3}(\.\d+)?%"  # a share of all rows, such as 5% or 0.1%


class OutputSpec(Section):
    """Destination of the results, and timing of commits."""

    path: Annotated[
        Location, Field(description="Directory of the results; a local path or `s3://`. Each job has its own output.")
    ]
    commit_interval_s: Annotated[
        float, Field(gt=0, description="Longest wait of a finished row before its commit, in seconds.")
    ] = 5.0
    commit_rows: Annotated[
        int, Field(ge=1, description="Number of finished rows of one shard that triggers a commit at once.")
    ] = 256
    patience_s: Annotated[
        float, Field(ge=0, description="Longest outage of the output's storage before the job stops, in seconds.")
    ] = 300.0


class LimitsSpec(Section):
    """Limits of each row, and of failures in a job."""

    max_prompt_tokens: Annotated[
        int, Field(ge=1, description="Most tokens of one prompt. A longer prompt is a dead letter.")
    ] = 40_000
    max_images: Annotated[int, Field(ge=0, description="Most images in one prompt, page images included.")] = 10
    max_image_pixels: Annotated[int, Field(ge=1, description="Most pixels of one image, checked before decoding.")] = (
        50_000_000
    )
    max_image_bytes: Annotated[int, Field(ge=1, description="Largest image file, in bytes.")] = 100_000_000
    image_timeout_s: Annotated[float, Field(gt=0, description="Time limit for decoding one image, in seconds.")] = 20.0
    max_pages: Annotated[
        int,
        Field(
            ge=1,
            description="Most pages of one document. A page image takes up to 7 MB of memory until it is answered.",
        ),
    ] = 200
    max_document_bytes: Annotated[int, Field(ge=1, description="Largest document file, in bytes.")] = 200_000_000
    document_timeout_s: Annotated[
        float, Field(gt=0, description="Time limit for rendering one document, in seconds.")
    ] = 120.0
    document_memory_mb: Annotated[
        int, Field(ge=256, description="Memory limit for rendering one document, in megabytes.")
    ] = 2048
    answer_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Time limit for checking one answer by `answer.schema` or `answer.extract`, in seconds.",
        ),
    ] = 5.0
    row_timeout_s: Annotated[
        float | None,
        Field(
            gt=0,
            description="Time without a new token after which a row or an engine counts as hung, in seconds. null: "
            "no limit.",
        ),
    ] = 600.0
    repetition_tokens: Annotated[
        int | None,
        Field(ge=64, description="Tokens of pure repetition after which a sample is ended. null: no limit."),
    ] = 2048
    max_failed_rows: Annotated[
        int | str | None,
        Field(
            description="Most dead letters: a number, or a share of all rows such as `5%`. One more ends the job early "
            "with exit code 1. null: no limit."
        ),
    ] = None

    @field_validator("max_failed_rows", mode="before")
    @classmethod
    def _is_number_or_share(cls, value: Any) -> Any:
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            return value
        if isinstance(value, str) and re.fullmatch(SHARE, value) and Fraction(value[:-1]) <= 100:
            return value
        raise ValueError("write a whole number, greater than or equal to 0, or a share of all rows such as 5%")

    def failed_allowed(self, planned: int) -> int | None:
        """Most dead letters of a job with `planned` rows; None if any number is allowed."""
        if isinstance(self.max_failed_rows, str):
            return math.floor(Fraction(self.max_failed_rows[:-1]) * planned / 100)
        return self.max_failed_rows


class MetricsSpec(Section):
    """Metrics endpoint of a running job."""

    enabled: Annotated[bool, Field(description="true: serve `/metrics` and `/healthz` while the command runs.")] = True
    bind: Annotated[
        str,
        Field(
            min_length=1,
            description="Address of the metrics endpoint. `0.0.0.0`: other machines can read the metrics.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int | None,
        Field(
            ge=0,
            le=65535,
            description=f"Port of the metrics endpoint. null: {METRICS_PORT}, or any free port if taken. "
            "0: any free port.",
        ),
    ] = None
    linger_s: Annotated[
        float | None,
        Field(
            ge=0,
            description="Time to serve metrics after the job is complete, in seconds. null: until a scraper that has "
            "read them before has read them once more, at most 60 s.",
        ),
    ] = None
    push_gateway: Annotated[
        str | None,
        Field(
            description="URL of a Prometheus Pushgateway. Metrics are pushed at intervals and at the end. null: "
            "nothing is pushed."
        ),
    ] = None
    file_sd: Annotated[
        str | None,
        Field(
            description="Folder for a Prometheus `file_sd` file with the address of this job's metrics. null: no file."
        ),
    ] = None

    @field_validator("push_gateway")
    @classmethod
    def _is_url(cls, value: str | None) -> str | None:
        try:
            parts = urlsplit(value or "http://host")
            right = (
                parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
            (parts.hostname or "").encode("idna")
        except ValueError:
            right = False
        if not right:
            raise ValueError("write http://host:9091, the address of the Pushgateway")
        return value

    @field_validator("file_sd")
    @classmethod
    def _is_folder(cls, value: str | None) -> str | None:
        if value is not None and (not value or "://" in value):
            raise ValueError("write a folder of this machine, or one that it shares with Prometheus")
        return value


class CostSpec(Section):
    """Price of the devices, for the report and the metrics."""

    device_hour: Annotated[
        float | None,
        Field(
            ge=0,
            description="Price of one GPU-hour; on CPUs, of one replica-hour. null: only hours are reported.",
        ),
    ] = None
    currency: Annotated[str, Field(description="Currency of `device_hour` (ISO 4217), such as `EUR`.")] = "USD"

    @field_validator("currency")
    @classmethod
    def _is_currency(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z]{3}", value):
            raise ValueError("write three capital letters, such as USD or EUR")
        return value


class ScheduleSpec(Section):
    """Times at which a job runs by itself."""

    cron: Annotated[
        str,
        Field(
            description="Start times in cron's five fields: minute, hour, day of month, month, weekday. `0 6 * * *`: "
            "each day at 06:00."
        ),
    ]
    timezone: Annotated[str, Field(description="IANA time zone in which `cron` is evaluated.")] = "UTC"
    missed: Annotated[
        Literal["catch_up", "skip"],
        Field(
            description="Handling of ticks that were not started in time. `catch_up`: one run for all of them. `skip`: "
            "wait for the next tick."
        ),
    ] = "catch_up"

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        count = len(value.split())
        problem = "" if count == 5 else f"it has {counted(count, 'field')}, not 5"
        if not problem:
            try:
                if next(CronSim(value, datetime.now(UTC)), None) is None:
                    problem = "no such day in the next 50 years"
            except CronSimError as error:
                problem = str(error)
        if problem:
            raise ValueError(f"write minute, hour, day of month, month and weekday, such as `0 6 * * *`: {problem}")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:  # an unknown name, a path, or a folder of the database
            raise ValueError("no such time zone: write an IANA name, such as Europe/Paris or UTC") from error
        return value
