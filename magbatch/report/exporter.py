"""Metrics of a running job for Prometheus: the driver serves one endpoint for the whole fleet.

`/metrics` gives the current values; `/healthz` says whether the driver still watches its fleet. Neither a slow reader
nor a failure of the endpoint delays the job.
"""

import hashlib
import http
import json
import os
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

from prometheus_client import make_wsgi_app, push_to_gateway
from prometheus_client.exposition import basic_auth_handler, default_handler
from prometheus_client.registry import CollectorRegistry

import magbatch
from magbatch.errors import SpecError
from magbatch.replica.board import COMMIT_BOUNDS_S, State
from magbatch.report import metrics
from magbatch.report.metrics import Values
from magbatch.report.metrics_server import Handler, Server
from magbatch.report.progress import JobProgress, ProgressSnapshot
from magbatch.rows import ReasoningStatus
from magbatch.spec import JobSpec, MetricsSpec
from magbatch.spec.secrets import PUSH_PASSWORD, PUSH_USER, without_secrets
from magbatch.spec.sections_output import METRICS_PORT
from magbatch.totals import LATENCY_BOUNDS_S, LENGTH_BOUNDS_TOKENS, Totals, cumulative

PUSH_INTERVAL_S = 15.0  # between two pushes; equals the scrape interval in monitoring/
PUSH_TIMEOUT_S = 5.0
LAST_SCRAPE_S = 60.0  # longest wait for a last scrape after the end; Prometheus' default interval is 60 s
HEALTHY_S = 180.0  # longest silence of the driver; it observes its fleet a few times a second


class Exporter:
    """Serves the metrics of a job.

    Args:
        spec: Spec of the job.
        progress: Progress of the job, the source of the values.
        say: Function that shows one line to a person.

    Attributes:
        registry: Registry that computes the values whenever it is read.
    """

    def __init__(self, spec: JobSpec, progress: JobProgress, say: Callable[[str], None]) -> None:
        self._spec, self._progress, self._say = spec, progress, say
        self._common = {"job_name": spec.name, "model": spec.model.source}
        self.registry: CollectorRegistry = metrics.registry(self.values)
        self._push_fails = False
        self._scrapes: deque[float] = deque(maxlen=2)
        self._final_scraped = threading.Event()  # set after the final values were read

    def values(self) -> Values:
        """Return the current values."""
        values = Values(self._common)
        spec = self._spec
        info = {"version": magbatch.__version__, "engine": spec.model.engine, "output": spec.output.path}
        values.set(metrics.JOB_INFO, 1, **info)
        now = self._progress.snapshot()
        _job(values, now, spec)
        if now.totals is not None:
            _rows(values, now.totals)
        _fleet(values, now)
        _storage(values, now)
        return values

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve while a block runs. After a complete job, serve for `metrics.linger_s` more.

        Raises:
            SpecError: The address cannot be served on.
        """
        settings = self._spec.metrics
        if not settings.enabled:
            yield
            return
        with ExitStack() as stack:
            server = _bind(settings, self._answer)
            stack.callback(server.server_close)
            threading.Thread(target=self._serve, args=(server,), name="metrics", daemon=True).start()
            stack.callback(server.shutdown)
            host, port = _reachable(settings.bind), server.server_port
            self._say(f"metrics: http://{host}:{port}/metrics")
            if settings.file_sd is not None:
                stack.enter_context(self._announced(settings.file_sd, f"{host}:{port}"))
            if settings.push_gateway is not None:
                stack.enter_context(self._pushing(settings.push_gateway))
            yield
            if self._progress.snapshot().complete:
                with suppress(KeyboardInterrupt):  # Ctrl-C ends the wait; the job is complete
                    self._linger(settings.linger_s)

    def _serve(self, server: Server) -> None:
        try:
            server.serve_forever()
        except Exception as error:  # noqa: BLE001 - a thread's boundary: the job continues
            self._say(f"metrics are no longer served: {type(error).__name__}: {error}; the job continues without them")

    def _linger(self, seconds: float | None) -> None:
        """Wait after the end of the job, so that the final values are read.

        Args:
            seconds: Seconds to wait. None: until the next scrape is due if there were two, at most `LAST_SCRAPE_S`.
        """
        if seconds is not None:
            if seconds:
                self._say(f"metrics are served for another {seconds:g} s (metrics.linger_s)")
                time.sleep(seconds)
            return
        if len(self._scrapes) < 2 or self._final_scraped.is_set():
            return
        before, last = self._scrapes
        due = last + 1.5 * (last - before) - time.monotonic()
        if due > 0:
            self._final_scraped.wait(min(due, LAST_SCRAPE_S))

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"].rstrip("/")
        if path == "/metrics":
            self._scrapes.append(time.monotonic())
            if self._progress.snapshot().complete:
                self._final_scraped.set()
            app: Callable[..., Iterable[bytes]] = make_wsgi_app(self.registry)
            return app(environ, start_response)
        if path == "/healthz":
            status, text = self._health()
        else:
            status, text = http.HTTPStatus.NOT_FOUND, "page not found: try /metrics or /healthz"
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    def _health(self) -> tuple[http.HTTPStatus, str]:
        silent = self._progress.silent_s
        if silent > HEALTHY_S:
            return http.HTTPStatus.SERVICE_UNAVAILABLE, f"driver has not observed its fleet for {silent:.0f} s"
        return http.HTTPStatus.OK, "ok"

    @contextmanager
    def _announced(self, folder: str, target: str) -> Iterator[None]:
        """Keep a file for Prometheus' service discovery. After a kill it remains, so the job is shown as down."""
        # Part of the name, because two jobs of one name may run at once.
        output_key = hashlib.sha256(self._spec.output.path.encode()).hexdigest()[:8]
        file = Path(folder) / f"magbatch-{self._spec.name}-{output_key}.json"
        draft = file.with_suffix(f".{os.getpid()}.tmp")
        labels = {"job_name": self._spec.name, "output": self._spec.output.path}
        text = json.dumps([{"targets": [target], "labels": labels}])
        with _file_sd(folder):
            file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(text)
            draft.replace(file)
        try:
            yield
        finally:
            with suppress(OSError):
                if file.read_text() == text:  # another run of the job may have written its own file since
                    file.unlink()

    @contextmanager
    def _pushing(self, url: str) -> Iterator[None]:
        over = threading.Event()

        def push() -> None:
            while not over.wait(PUSH_INTERVAL_S):
                self._push(url)

        thread = threading.Thread(target=push, name="push", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._push(url)

    def _push(self, url: str) -> None:
        grouping = {"job_name": self._spec.name}
        try:
            push_to_gateway(url, "magbatch", self.registry, grouping, timeout=PUSH_TIMEOUT_S, handler=_push_handler)
            self._push_fails = False
        except Exception as error:  # noqa: BLE001 - a thread's boundary: the job continues without a gateway
            if not self._push_fails:  # say it once
                refused = getattr(error, "code", None) in {401, 403}
                advice = f" (set {PUSH_USER} and {PUSH_PASSWORD} in the environment)" if refused else ""
                shown = without_secrets(f"{url}: {error}")
                self._say(f"metrics.push_gateway {shown}{advice}; the job continues without it")
            self._push_fails = True


def _push_handler(**request: Any) -> Callable[[], None]:
    """Push with the user and password of the environment, if they are set."""
    user, password = os.environ.get(PUSH_USER), os.environ.get(PUSH_PASSWORD)
    if user is None and password is None:
        return default_handler(**request)
    return basic_auth_handler(**request, username=user or "", password=password or "")


def check_address(settings: MetricsSpec) -> None:
    """Check before a job starts that its metrics can be served.

    Raises:
        SpecError: The address is taken or unknown, or the folder of `metrics.file_sd` cannot be written.
    """
    if not settings.enabled:
        return
    _bind(settings, lambda *_: []).server_close()
    if (folder := settings.file_sd) is not None:
        with _file_sd(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def _file_sd(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpecError(
            f"metrics.file_sd {folder}: cannot be written: {error.strerror or error}; name a folder that this user "
            "may write"
        ) from error


def _bind(settings: MetricsSpec, answer: Callable[..., Iterable[bytes]]) -> Server:
    wanted = METRICS_PORT if settings.port is None else settings.port
    # Without a chosen port, the default port may be taken by another job: then any free port is used.
    for port in [wanted, 0] if settings.port is None else [wanted]:
        try:
            family = socket.getaddrinfo(settings.bind, port, type=socket.SOCK_STREAM)[0][0]
            server = type("Server", (Server,), {"address_family": family})
            return make_server(settings.bind, port, answer, server, handler_class=Handler)
        except (OSError, ValueError) as error:  # an impossible host name raises ValueError
            refused = error
    raise SpecError(
        f"metrics.bind {settings.bind}, metrics.port {wanted}: cannot be served on: "
        f"{getattr(refused, 'strerror', None) or refused}; "
        "set metrics.port to a free port, or to 0, which takes any free port"
    )


def _reachable(bind: str) -> str:
    """Return the host under which a reader on another machine finds this process."""
    if bind in {"0.0.0.0", "::"}:
        return socket.gethostname()
    return f"[{bind}]" if ":" in bind else bind


def _job(values: Values, now: ProgressSnapshot, spec: JobSpec) -> None:
    values.set(metrics.JOB_STARTED, now.started)
    values.set(metrics.JOB_COMPLETE, int(now.complete))
    values.set(metrics.JOB_PROGRESS, now.progressed)
    if now.eta is not None and not now.complete:
        for bound, seconds in zip(("expected", "early", "late"), now.eta, strict=True):
            values.set(metrics.JOB_ETA, time.time() + seconds, bound=bound)
    if spec.deadline is not None:
        values.set(metrics.JOB_DEADLINE, spec.deadline.timestamp())
    values.set(metrics.DEVICE_SECONDS, now.spent.device_s)
    if now.cost is not None:
        values.set(metrics.COST, now.cost, currency=spec.cost.currency)
    values.set(metrics.ROWS_PLANNED, now.planned)


def _rows(values: Values, totals: Totals) -> None:
    values.set(metrics.ROWS_COMMITTED, totals.answered, outcome="answered")
    values.set(metrics.ROWS_COMMITTED, totals.failed, outcome="failed")
    for code, count in sorted(totals.by_code.items()):
        values.set(metrics.ROWS_FAILED, count, code=code)
    for status in ReasoningStatus:
        values.set(metrics.RECORDS, totals.by_status.get(status, 0), reasoning_status=str(status))
    for kind in ("prompt", "cached", "reasoning", "answer"):
        values.set(metrics.TOKENS, getattr(totals, f"{kind}_tokens"), kind=kind)
    truncated = totals.by_status.get(ReasoningStatus.TRUNCATED, 0)
    # Set from the start, because a short job is scraped only once.
    values.set(metrics.TRUNCATED, truncated / max(1, totals.records))
    values.set(metrics.DOCUMENTS_TRUNCATED, totals.documents_truncated)
    values.observe(metrics.ROW_LATENCY, cumulative(totals.by_latency, LATENCY_BOUNDS_S), totals.latency_ms / 1000)
    for metric, counts, sum_ in (
        (metrics.REASONING_TOKENS, totals.by_reasoning, totals.reasoning_tokens),
        (metrics.ANSWER_TOKENS, totals.by_answer, totals.answer_tokens),
    ):
        values.observe(metric, cumulative(counts, LENGTH_BOUNDS_TOKENS), sum_)


def _fleet(values: Values, now: ProgressSnapshot) -> None:
    fleet, spent = now.fleet, now.spent
    for state in State:
        values.set(metrics.REPLICAS, fleet.count(state), state=str(state))
    values.set(metrics.REPLICA_RESTARTS, spent.restarts)
    values.set(metrics.ENGINE_DEATHS, spent.engine_deaths)
    values.set(metrics.STARVED_SECONDS, spent.starved_s)
    for slot in now.slots:
        replica = str(slot.number)
        values.set(metrics.REPLICA_ROWS, slot.done.rows, replica=replica)
        values.set(metrics.REPLICA_TOKENS, slot.done.generated_tokens, replica=replica)
        values.set(metrics.ENGINE_PREEMPTIONS, slot.usage.preemptions, replica=replica)
        if fleet.slots and slot.state == State.SERVING:
            load = slot.load
            values.set(metrics.ROWS_IN_FLIGHT, load.in_flight, replica=replica)
            values.set(metrics.ROWS_WAITING, load.waiting, replica=replica)
            values.set(metrics.ENGINE_RUNNING, load.engine.running, replica=replica)
            values.set(metrics.ENGINE_QUEUED, load.engine.queued, replica=replica)
            values.set(metrics.ENGINE_KV, load.engine.kv_cache_ratio, replica=replica)


def _storage(values: Values, now: ProgressSnapshot) -> None:
    use = now.spent.use
    values.observe(metrics.COMMIT_SECONDS, cumulative(use.by_commit, COMMIT_BOUNDS_S), use.commit_ms / 1000)
    values.set(metrics.COMMIT_BYTES, use.commit_bytes)
    values.set(metrics.COMMIT_RETRIES, use.commit_retries)
    values.set(metrics.STORAGE_ERRORS, now.spent.input_errors, side="input")
    values.set(metrics.STORAGE_ERRORS, use.commit_retries + now.spent.output_errors, side="output")
