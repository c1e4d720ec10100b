"""All metrics of magbatch, each declared once: name, kind, help and labels.

Values are set through `Values`, which refuses a label that was not declared. Units are Prometheus' base units:
seconds, bytes, ratios. No label ever holds the id of a row, so the number of series stays small.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

COMMON = ("job_name", "model")  # labels of every series


class Kind(StrEnum):
    """Kind of a metric in Prometheus. A closed list."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Declared:
    """Declaration of a metric.

    Attributes:
        kind: Kind of the metric.
        name: Name with its unit. A counter's name lacks `_total`, which Prometheus' text format appends.
        help: Help text. Prometheus shows it alone, so it must make sense without the other metrics.
        labels: Names of the labels, without those of every series.
    """

    kind: Kind
    name: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def exposed(self) -> tuple[str, ...]:
        """Names of its series, for queries."""
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

JOB_INFO = _gauge(
    "magbatch_job_info",
    "Always 1. The labels give the version of magbatch, the engine and the output.",
    "version",
    "engine",
    "output",
)
JOB_STARTED = _gauge("magbatch_job_start_timestamp_seconds", "Start of the current run (Unix time).")
JOB_COMPLETE = _gauge("magbatch_job_complete", "1 if the job is complete (its manifest is written), else 0.")
JOB_PROGRESS = _gauge(
    "magbatch_job_progress_timestamp_seconds",
    "Time of the last commit of rows; before it, the start of the run (Unix time).",
)
JOB_ETA = _gauge(
    "magbatch_job_eta_timestamp_seconds",
    "Estimated end of the job (Unix time) at the speed of the last minute. bound: expected, early or late; early and "
    "late are the ends of a 90% interval.",
    "bound",
)
JOB_DEADLINE = _gauge("magbatch_job_deadline_timestamp_seconds", "Deadline from the spec (Unix time).")
DEVICE_SECONDS = _counter(
    "magbatch_device_seconds",
    "Seconds for which the job held devices: GPUs, or replicas on CPUs. Includes engine starts and earlier runs.",
)
COST = _counter(
    "magbatch_cost", "Cost of the devices so far, at the price in the spec. Includes earlier runs.", "currency"
)

# Rows and tokens of the job, including earlier runs. At the end they equal the manifest's sums.

ROWS_PLANNED = _gauge("magbatch_rows_planned", "Input rows of the job.")
ROWS_COMMITTED = _counter(
    "magbatch_rows_committed", "Rows committed to the output. outcome: answered, or failed (a dead letter).", "outcome"
)
ROWS_FAILED = _counter("magbatch_rows_failed", "Dead letters (rows that could not be answered) by error code.", "code")
RECORDS = _counter("magbatch_records", "Samples of answered rows by the state of their reasoning.", "reasoning_status")
TOKENS = _counter(
    "magbatch_tokens",
    "Tokens of committed rows. kind: prompt, cached (also counted as prompt), reasoning, answer.",
    "kind",
)
TRUNCATED = _gauge(
    "magbatch_truncated_ratio", "Share of samples whose reasoning was truncated, 0 to 1; 0 before the first sample."
)
DOCUMENTS_TRUNCATED = _counter(
    "magbatch_documents_truncated", "Answered rows whose document was truncated: the model saw only some of it."
)
ROW_LATENCY = _histogram(
    "magbatch_row_latency_seconds", "Seconds from a row's submission to the engine until its last token."
)
REASONING_TOKENS = _histogram("magbatch_reasoning_length_tokens", "Reasoning tokens of each sample.")
ANSWER_TOKENS = _histogram("magbatch_answer_length_tokens", "Answer tokens of each sample.")

# The fleet

REPLICAS = _gauge(
    "magbatch_replicas", "Replicas by state: starting, serving, or lost (silent or gone, not replaced yet).", "state"
)
REPLICA_RESTARTS = _counter("magbatch_replica_restarts", "Replicas that replaced an ended one. Includes earlier runs.")
ENGINE_DEATHS = _counter(
    "magbatch_engine_deaths", "Engines that died or hung with rows in flight. Includes earlier runs."
)
REPLICA_ROWS = _counter("magbatch_replica_rows", "Rows committed by a replica slot in this run.", "replica")
REPLICA_TOKENS = _counter(
    "magbatch_replica_tokens", "Reasoning and answer tokens committed by a replica slot in this run.", "replica"
)
ROWS_IN_FLIGHT = _gauge("magbatch_rows_in_flight", "Rows inside the engine of a replica.", "replica")
ROWS_WAITING = _gauge("magbatch_rows_waiting", "Rows queued in a replica, waiting for a free engine slot.", "replica")
ENGINE_RUNNING = _gauge(
    "magbatch_engine_running_sequences", "Sequences for which an engine is generating tokens.", "replica"
)
ENGINE_QUEUED = _gauge("magbatch_engine_queued_requests", "Requests that wait in an engine for a free slot.", "replica")
ENGINE_KV = _gauge("magbatch_engine_kv_cache_usage_ratio", "Share of an engine's KV cache in use, 0 to 1.", "replica")
ENGINE_PREEMPTIONS = _counter(
    "magbatch_engine_preemptions", "Sequences that an engine interrupted because its KV cache was full.", "replica"
)
STARVED_SECONDS = _counter(
    "magbatch_starved_seconds",
    "Seconds in which an engine had free slots while rows were waiting, summed over all replicas.",
)

# Storage

COMMIT_SECONDS = _histogram(
    "magbatch_commit_duration_seconds", "Seconds per commit of an object to the output, including refused attempts."
)
COMMIT_BYTES = _counter("magbatch_commit_bytes", "Bytes of the objects committed to the output.")
COMMIT_RETRIES = _counter("magbatch_commit_retries", "Attempts to commit an object that the output's storage refused.")
STORAGE_ERRORS = _counter(
    "magbatch_storage_errors", "Requests that storage refused and that were retried. side: input, output.", "side"
)


class Values:
    """Values of all metrics at one moment.

    Args:
        common: Values of the labels in `COMMON`, in that order.
    """

    def __init__(self, common: dict[str, str]) -> None:
        assert tuple(common) == COMMON
        self._common = list(common.values())
        self._families: dict[str, Metric] = {}

    def set(self, metric: Declared, value: float, **labels: str) -> None:
        """Set a value of a counter or a gauge."""
        assert tuple(labels) == metric.labels, f"{metric.name} has the labels {metric.labels}"
        make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
        if metric.name not in self._families:
            self._families[metric.name] = make(metric.name, metric.help, labels=[*COMMON, *metric.labels])
        family = self._families[metric.name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric([*self._common, *labels.values()], value)

    def observe(self, metric: Declared, buckets: list[tuple[str, int]], sum_: float) -> None:
        """Set a histogram.

        Args:
            metric: Declaration of the histogram.
            buckets: Upper bound, and number of values at or below it, in ascending order; the last bound is `+Inf`.
            sum_: Sum of all values.
        """
        assert metric.kind is Kind.HISTOGRAM
        family = HistogramMetricFamily(metric.name, metric.help, labels=[*COMMON])
        family.add_metric(self._common, buckets, sum_)
        self._families[metric.name] = family

    def families(self) -> Iterable[Metric]:
        """Return all families that have a value, in the order of declaration."""
        return (self._families[name] for name in METRICS if name in self._families)


class _Current(Collector):
    """Collector that computes its values at each scrape."""

    def __init__(self, values: Callable[[], Values]) -> None:
        self._values = values

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        return self._values().families()


def registry(values: Callable[[], Values]) -> CollectorRegistry:
    """Return a registry that calls `values` whenever it is read."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_Current(values))
    return made
