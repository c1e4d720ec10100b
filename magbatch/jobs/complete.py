"""What is open of a frozen job is answered, proved complete, and given its manifest: for a run and for a retry."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from rich.console import Console

from magbatch.capture import threads_told
from magbatch.counts import counted
from magbatch.engines.defaults import engine_args
from magbatch.errors import ClusterError, JobError, StorageError
from magbatch.jobs.early_end import Failures
from magbatch.jobs.opening import check_input
from magbatch.ledger.finalise import finalise
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.letters import examples, explained
from magbatch.model.checkpoint import locate
from magbatch.pipeline.context import JobContext
from magbatch.plan.plan import Plan
from magbatch.replica.board import Snapshot
from magbatch.report.exporter import Exporter
from magbatch.report.heartbeat import Heartbeat, earlier, earlier_runs, earlier_versions
from magbatch.report.log import RunLog, log_of
from magbatch.report.page import report_files
from magbatch.report.progress import JobProgress
from magbatch.report.report import Report, Run, SlotUsage, settings
from magbatch.report.runs import with_this
from magbatch.report.scan import DuplicateIds, Slowest
from magbatch.report.terminal import ProgressLine
from magbatch.report.wrong import WrongAnswers
from magbatch.schema import ERRORS, RESULTS
from magbatch.spec import JobSpec
from magbatch.storage import open_store
from magbatch.totals import Totals
from magbatch.versions import differences, versions

LATE_LISTING_S = (0.5, 1.0, 2.0, 4.0)  # waits for a listing that does not show yet what was written


def complete(
    spec: JobSpec, plan: Plan, ledger: Ledger, console: Console, lease: Lease, began: float, *, judged: bool
) -> Report:
    """Answer what is open of a frozen job, prove it complete, and write its manifest.

    Args:
        spec: The job.
        plan: Its plan, which the ledger holds.
        ledger: Its output.
        console: Where progress goes.
        lease: A hold on the output.
        began: When the command began, by the monotonic clock (seconds).
        judged: Whether many dead letters end it early.

    Raises:
        TooManyFailedError: They did; what is finished is committed.
        JobError: As its kinds say.
    """
    spec = plan.pinned(spec)
    job = JobContext(spec, plan.columns, plan.engine_hints, plan.id)
    args = engine_args(spec, locate(spec.model, weights=False).facts, plan.engine_hints)
    done = ledger.done_counts(plan)
    check_input(spec, plan, done)
    before = int(done.sum())
    failures = _failures(spec, plan, ledger, before) if judged else None
    if before:
        console.print(
            f"{before:,} of {counted(plan.rows, 'row')} are committed already; going on with the rest", highlight=False
        )

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    quick = open_store(ledger.path, quick=True)
    progress = JobProgress(spec, plan.rows, before, *earlier(quick), refusals=lambda: ledger.refusals)
    progress.past = earlier_runs(quick)
    heartbeat = Heartbeat(quick, progress, lease.check, say)
    if before and (changed := differences(earlier_versions(quick), versions())):
        say(f"note: the rest is answered by other versions than the rows before: {', '.join(changed)}")
    log = log_of(ledger.path, time.time())
    log.note_start(spec, plan, progress)
    with (
        log.writing(progress, console),
        threads_told(say),
        Exporter(spec, progress, say).serving(),
        heartbeat.beating(),
    ):
        if before:
            _look_back(ledger, progress, say)
        slots, line = int(args["max_num_seqs"]), ProgressLine(console, progress, log.note)
        the_run = _answer(job, plan, ledger, done, slots, line, log, lease, failures)
        the_run.seconds = time.monotonic() - began
        report = _finish(spec, plan, ledger, args, the_run, progress, lease)
        progress.finish(report.totals)
    return report


def _failures(spec: JobSpec, plan: Plan, ledger: Ledger, before: int) -> Failures:
    """What is known of the job's dead letters before its run begins.

    Raises:
        TooManyFailedError: They are too many already.
    """
    failed = sum(part.rows for part in ledger.objects(ERRORS)) if before else 0
    allowed = spec.limits.failed_allowed(plan.rows)
    if allowed is not None and failed > allowed:  # names count a row twice that two attempts have committed
        failed = ledger.distinct_rows(ERRORS)
    found = Failures(spec, plan.rows, max(0, before - failed), failed, lambda: explained(ledger))
    if (error := found.look(Totals(), Snapshot())) is not None:
        raise error
    return found


def _look_back(ledger: Ledger, progress: JobProgress, say: Callable[[str], None]) -> None:
    """Read what the rows of earlier runs hold from the footers of their objects, while the engines start."""
    names = [*ledger.objects(RESULTS), *ledger.objects(ERRORS)]  # now: later ones are this run's

    def read() -> None:
        try:
            progress.set_earlier_totals(ledger.totals(names))
        except Exception as error:  # noqa: BLE001 - a thread's boundary: numbers for people hold no job up
            say(f"the metrics of this run lack the rows of earlier ones: {type(error).__name__}: {error}")

    threading.Thread(target=read, name="look-back", daemon=True).start()


def _answer(
    job: JobContext,
    plan: Plan,
    ledger: Ledger,
    done: "np.ndarray[Any, np.dtype[np.int64]]",
    slots: int,
    line: ProgressLine,
    log: RunLog,
    lease: Lease,
    failures: Failures | None,
) -> Run:
    """Let replicas answer until the ledger has every row, or too many have failed."""
    the_run, mine = Run(), Totals()
    with line:
        while (left := plan.rows - int(done.sum())) > 0:
            from magbatch.fleet.cluster import run_fleet

            serving = _Serving(line, log, lease, failures, mine)
            last = run_fleet(
                job,
                plan,
                done,
                serving,
                lease.token,
                slots=slots,
                any_may_have_rows=lease.inherited,
                first=the_run.serving_s == 0,
            )
            the_run.serving_s += serving.until - serving.since
            line.progress.end_fleet()
            log.end_fleet()
            mine = mine.plus(last.done)
            the_run.rows += last.done.rows
            the_run.tokens += last.done.generated_tokens
            the_run.engine_deaths += last.engine_deaths
            the_run.versions |= last.versions
            done = _listed(ledger, plan, plan.rows - left + last.done.rows)
            if plan.rows - int(done.sum()) >= left:
                raise ClusterError(
                    f"the run ended with {counted(left, 'row')} open and committed none of them; run it again"
                )
    return the_run


def _listed(ledger: Ledger, plan: Plan, expected: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """What is done. A listing may come late: rows that replicas have committed are not to be paid for again."""
    for wait_s in (*LATE_LISTING_S, 0.0):
        done = ledger.done_counts(plan)
        if int(done.sum()) >= min(expected, plan.rows):
            break
        time.sleep(wait_s)
    return done


class _Serving:
    """Notes when the first replica served and when rows were last committed; ends the run when its lease is lost.

    Args:
        line: Shows where the job stands.
        log: Log of the run.
        lease: The run's.
        failures: Ends the run when they are too many; None for a job that no number of them ends.
        before: What earlier fleets of this run have committed.
    """

    def __init__(
        self, line: ProgressLine, log: RunLog, lease: Lease, failures: Failures | None, before: Totals
    ) -> None:
        self._line, self._log = line, log
        self._lease = lease
        self._failures, self._before = failures, before
        self.since = self.until = time.monotonic()
        self._started, self._rows = False, 0

    def watch(self, snapshot: Snapshot) -> JobError | None:
        """See `FleetObserver.watch`."""
        if not self._started and not snapshot.starting:
            self._started, self.since = True, time.monotonic()
        if snapshot.done.rows != self._rows:
            self._rows, self.until = snapshot.done.rows, time.monotonic()
        self._line.progress.observe(snapshot)
        self._log.observe(snapshot)
        self._line.show()
        self._lease.check()
        return None if self._failures is None else self._failures.look(self._before.plus(snapshot.done), snapshot)

    def say(self, message: str) -> None:
        """See `FleetObserver.say`."""
        self._line.say(message)


def _finish(
    spec: JobSpec,
    plan: Plan,
    ledger: Ledger,
    args: dict[str, Any],
    the_run: Run,
    progress: JobProgress,
    lease: Lease,
) -> Report:
    """Prove the output complete; the manifest is written last, after the report."""
    user_id, missing = plan.output_name(spec.input.columns.id), list[str]()
    for wait_s in (*LATE_LISTING_S, 0.0):
        slowest, wrong, reports = Slowest(user_id), WrongAnswers(user_id), list[Report]()
        with DuplicateIds(user_id) as ids:

            def observe(kind: str, table: pa.Table, ids: DuplicateIds = ids, slowest: Slowest = slowest) -> None:
                ids.observe(kind, table)
                slowest.observe(kind, table)

            def make_report(
                totals: Totals,
                ids: DuplicateIds = ids,
                slowest: Slowest = slowest,
                wrong: WrongAnswers = wrong,
                reports: list[Report] = reports,
            ) -> dict[str, bytes]:
                repeated = ids.count() if user_id else None
                now = progress.snapshot()
                report = Report(
                    spec.name, ledger.path, plan.rows, totals, repeated, the_run, settings(spec, args), now.spent,
                    progress.history, [SlotUsage.of(slot) for slot in now.slots], slowest.rows(),
                    now.cost, spec.cost.currency,
                )  # fmt: skip
                report.began, report.ended = progress.began, time.time()
                report.letters = [asdict(one) for one in examples(ledger, totals.by_code)]
                report.wrong = wrong.found
                rows = now.done - progress.before
                report.runs = with_this(progress.past, now.started, rows, socket.gethostname())
                reports.append(report)
                return report_files(report)

            _, missing = finalise(ledger, spec, plan, observe, make_report, lease.confirm, wrong.observe)
            if not missing:
                return reports[-1]
        time.sleep(wait_s)
    raise StorageError(
        f"{ledger.path}: {counted(len(missing), 'row is', 'rows are')} in no object that its listing shows, though "
        f"every shard was done; the first is {missing[0]}",
        passing=True,
    )
