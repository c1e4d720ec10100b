"""Every metric of magbatch, declared once: name, kind, meaning and labels.

A metric has a value only through a `Values`, which refuses a label that was not declared; what is collected is
handed to prometheus-client, which writes it. Base units (seconds, bytes, ratios), and few series: no label ever
holds a row's id.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

# Upper bounds of a commit's seconds: a disk's, an object store's, and one that refuses for a while.
COMMON = ("job_name", "model")  # of every series


class Kind(StrEnum):
    """What a metric is to Prometheus."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric.

    Attributes:
        kind: What it is.
        name: With its unit; a counter's without `_total`, which Prometheus' format appends.
        help: What it counts.
        labels: Beside those of every series.
    """

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exposed(self) -> tuple[str, ...]:
        """The names that queries use."""
        if self.kind is Kind.HISTOGRAM:
            return tuple(f"{self.name}_{end}" for end in ("bucket", "sum", "count"))
        return (f"{self.name}_total",) if self.kind is Kind.COUNTER else (self.name,)


def _counter(name: str, help_: str, *labels: str) -> Declared:
    return _declare(Kind.COUNTER, name, help_, labels)


def _gauge(name: str, help_: str, *labels: str) -> Declared:
    return _declare(Kind.GAUGE, name, help_, labels)


def _histogram(name: str, help_: str, *labels: str) -> Declared:
    return _declare(Kind.HISTOGRAM, name, help_, labels)


METRICS: dict[str, Declared] = {}


def _declare(kind: Kind, name: str, help_: str, labels: tuple[str, ...]) -> Declared:
    assert name not in METRICS, f"{name} is declared twice"
    METRICS[name] = Declared(kind, name, help_, labels)
    return METRICS[name]


# The job

JOB_INFO = _gauge("magbatch_job_info", "1; its labels say what runs.", "version", "engine", "output")
JOB_STARTED = _gauge("magbatch_job_start_timestamp_seconds", "When this run of the job began (Unix time).")
JOB_COMPLETE = _gauge("magbatch_job_complete", "1 once the manifest is written, else 0.")
JOB_PROGRESS = _gauge(
    "magbatch_job_progress_timestamp_seconds", "When rows were last committed, or this run began (Unix time)."
)
JOB_ETA = _gauge(
    "magbatch_job_eta_timestamp_seconds",
    "When the job will be complete (Unix time), at the last minute's speed: expected, and the ends of a 90% interval "
    "from the lengths seen so far.",
    "bound",
)
JOB_DEADLINE = _gauge("magbatch_job_deadline_timestamp_seconds", "When it should be (Unix time), if the spec says so.")
DEVICE_SECONDS = _counter(
    "magbatch_device_seconds",
    "Seconds for which devices (GPUs; on CPUs, replicas) were held, engine starts and earlier runs included.",
)
COST = _counter("magbatch_cost", "What these cost so far, in the currency and at the price of the spec.", "currency")

# Rows and tokens: of the job, earlier runs included; at the end, as the manifest has them

ROWS_PLANNED = _gauge("magbatch_rows_planned", "Input rows of the job.")
ROWS_COMMITTED = _counter(
    "magbatch_rows_committed", "Rows that are done: answered, or failed (a dead letter).", "outcome"
)
ROWS_FAILED = _counter("magbatch_rows_failed", "Dead letters by error code.", "code")
RECORDS = _counter("magbatch_records", "Samples of the answered rows, by how their thinking ended.", "reasoning_status")
TOKENS = _counter("magbatch_tokens", "Tokens of committed rows: prompt, cached (of those), reasoning, answer.", "kind")
TRUNCATED = _gauge(
    "magbatch_truncated_ratio", "Share of all samples whose thinking was truncated, 0 to 1; 0 before the first."
)
DOCUMENTS_TRUNCATED = _counter(
    "magbatch_documents_truncated", "Answered rows of whose document some pages or text were shown to no one."
)
ROW_LATENCY = _histogram("magbatch_row_latency_seconds", "Seconds from a row's submission to its last token.")
REASONING_TOKENS = _histogram("magbatch_reasoning_length_tokens", "Reasoning tokens of a sample.")
ANSWER_TOKENS = _histogram("magbatch_answer_length_tokens", "Answer tokens of a sample.")

# The fleet

REPLICAS = _gauge("magbatch_replicas", "Replicas by state: starting, serving, lost.", "state")
REPLICA_RESTARTS = _counter("magbatch_replica_restarts", "Replicas that took the place of one that had ended.")
ENGINE_DEATHS = _counter("magbatch_engine_deaths", "Engines that died, or hung, with rows in them.")
REPLICA_ROWS = _counter("magbatch_replica_rows", "Rows that a place in the fleet has committed in this run.", "replica")
REPLICA_TOKENS = _counter(
    "magbatch_replica_tokens", "Reasoning and answer tokens that a place has committed in this run.", "replica"
)
ROWS_IN_FLIGHT = _gauge("magbatch_rows_in_flight", "Rows inside a replica's engine.", "replica")
ROWS_WAITING = _gauge("magbatch_rows_waiting", "Rows that a replica has at hand and its engine no room for.", "replica")
ENGINE_RUNNING = _gauge("magbatch_engine_running_sequences", "Sequences that an engine works on.", "replica")
ENGINE_QUEUED = _gauge("magbatch_engine_queued_requests", "Requests that wait for a slot of an engine.", "replica")
ENGINE_KV = _gauge("magbatch_engine_kv_cache_usage_ratio", "Share of an engine's KV cache in use, 0 to 1.", "replica")
ENGINE_PREEMPTIONS = _counter(
    "magbatch_engine_preemptions", "Sequences that an engine put back for want of KV cache.", "replica"
)
STARVED_SECONDS = _counter(
    "magbatch_starved_seconds",
    "Seconds, over all replicas, in which an engine had free slots while rows remained to be begun.",
)

# Storage

COMMIT_SECONDS = _histogram("magbatch_commit_duration_seconds", "Seconds that an object of rows took to be written.")
COMMIT_BYTES = _counter("magbatch_commit_bytes", "Bytes of the objects of rows that were written.")
COMMIT_RETRIES = _counter("magbatch_commit_retries", "Tries to write one that the output's storage refused.")
STORAGE_ERRORS = _counter(
    "magbatch_storage_errors", "Requests that storage refused and that were tried again: input, output.", "side"
)


class Values:
    """The values of one moment.

    Args:
        common: Values of the labels that every series has.
    """

    def __init__(self, common: dict[str, str]) -> None:
        assert tuple(common) == COMMON
        self._common = list(common.values())
        self._families: dict[str, Metric] = {}

    def set(self, metric: Declared, value: float, **labels: str) -> None:
        """One value of a counter or a gauge."""
        assert tuple(labels) == metric.labels, f"{metric.name} has the labels {metric.labels}"
        make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
        if metric.name not in self._families:
            self._families[metric.name] = make(metric.name, metric.help, labels=[*COMMON, *metric.labels])
        family = self._families[metric.name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric([*self._common, *labels.values()], value)

    def observe(self, metric: Declared, buckets: list[tuple[str, int]], sum_: float) -> None:
        """A histogram.

        Args:
            metric: Which.
            buckets: Upper bound to how many values are at or below it; the last is `+Inf`.
            sum_: Of all values.
        """
        assert metric.kind is Kind.HISTOGRAM
        family = HistogramMetricFamily(metric.name, metric.help, labels=[*COMMON])
        family.add_metric(self._common, buckets, sum_)
        self._families[metric.name] = family

    def families(self) -> Iterable[Metric]:
        """In the order in which the metrics are declared."""
        return (self._families[name] for name in METRICS if name in self._families)


class _Now(Collector):
    def __init__(self, values: Callable[[], Values]) -> None:
        self._values = values

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        return self._values().families()


def registry(values: Callable[[], Values]) -> CollectorRegistry:
    """The one registry of a job: asks for the values of the moment whenever it is read."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_Now(values))
    return made
