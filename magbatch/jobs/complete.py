"""Completion of a frozen job, for `run` and `retry`: answer the open rows, prove the output, write the manifest."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from magbatch.capture import threads_told
from magbatch.counts import counted
from magbatch.engines import engine_args
from magbatch.engines.base import EngineArgs
from magbatch.errors import ClusterError, StorageError
from magbatch.jobs.early_end import Failures
from magbatch.jobs.opening import check_input
from magbatch.jobs.report_of_run import ReportMaker
from magbatch.jobs.serving import Observers, Serving
from magbatch.ledger.finalise import finalise
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.letters import explained
from magbatch.model.checkpoint import Checkpoint
from magbatch.pipeline.context import JobContext
from magbatch.plan.plan import Plan
from magbatch.replica.board import Snapshot
from magbatch.report.exporter import Exporter
from magbatch.report.heartbeat import Heartbeat, earlier, earlier_runs, earlier_versions
from magbatch.report.log import RunLog, log_of
from magbatch.report.progress import JobProgress
from magbatch.report.report import Report, Run
from magbatch.report.scan import DuplicateIds
from magbatch.report.terminal import ProgressLine
from magbatch.schema import ERRORS, RESULTS
from magbatch.spec import JobSpec
from magbatch.storage import open_store
from magbatch.totals import Totals
from magbatch.versions import differences, versions

LATE_LISTING_S = (0.5, 1.0, 2.0, 4.0)  # seconds between listings, for a store whose listing lags behind its writes


def complete(
    spec: JobSpec,
    plan: Plan,
    checkpoint: Checkpoint,
    ledger: Ledger,
    console: Console,
    lease: Lease,
    began: float,
    *,
    judged: bool,
) -> Report:
    """Answer the open rows of a frozen job, prove the job complete, and write its manifest.

    Args:
        spec: Spec of the job; the plan pins its model version.
        plan: Plan of the job, as frozen in the ledger.
        checkpoint: The model's files, of the plan's version.
        ledger: Output of the job.
        console: Console for progress messages.
        lease: Held lease on the output.
        began: Start of the command (monotonic clock, seconds).
        judged: Whether too many dead letters end the job early.

    Returns:
        The report of the complete job.

    Raises:
        TooManyFailedError: Too many rows failed. Finished rows are committed.
        JobError: The job cannot be completed; subclasses say why.
    """
    spec = plan.pinned(spec)
    job = JobContext(spec, plan.columns, plan.engine_hints, plan.id)
    args = engine_args(spec, checkpoint.facts, plan.engine_hints)
    done = ledger.done_counts(plan)
    check_input(spec, plan, done)
    before = int(done.sum())
    failures = _earlier_failures(spec, plan, ledger, before) if judged else None

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if before:
        say(f"{before:,} of {counted(plan.rows, 'row')} are committed already; continuing with the rest")
    with _told(spec, plan, ledger, before, console, lease, say) as (progress, log):
        observer = Observers(ProgressLine(console, progress, log.note), log, lease, failures)
        the_run = _answer(job, plan, ledger, done, args.max_num_seqs, observer)
        the_run.seconds = time.monotonic() - began
        report = _finish(spec, plan, ledger, args, the_run, progress, lease)
        progress.finish(report.totals)
    return report


@contextmanager
def _told(
    spec: JobSpec, plan: Plan, ledger: Ledger, before: int, console: Console, lease: Lease, say: Callable[[str], None]
) -> Iterator[tuple[JobProgress, RunLog]]:
    """Tell the progress of a run to its log, its heartbeat and its metrics for as long as the block runs.

    Args:
        spec: The job.
        plan: Plan of the job.
        ledger: Output of the job.
        before: Rows that earlier runs committed.
        console: Console for progress messages.
        lease: Held lease on the output; the heartbeat checks it.
        say: Function that shows a message.

    Yields:
        The progress and the log.
    """
    quick = open_store(ledger.path, quick=True)
    progress = JobProgress(spec, plan.rows, before, *earlier(quick), refusals=lambda: ledger.refusals)
    progress.past = earlier_runs(quick)
    heartbeat = Heartbeat(quick, progress, lease.check, say)
    changed = differences(earlier_versions(quick), versions()) if before else []
    log = log_of(ledger.path, time.time())
    log.note_start(spec, plan, progress)
    with (
        log.writing(progress, console),
        threads_told(say),
        Exporter(spec, progress, say).serving(),
        heartbeat.beating(),
    ):
        if changed:
            say(f"note: package versions differ from those of the committed rows: {', '.join(changed)}")
        if before:
            _add_earlier_totals(ledger, progress, say)
        yield progress, log


def _earlier_failures(spec: JobSpec, plan: Plan, ledger: Ledger, before: int) -> Failures:
    """Dead letters of earlier runs, compared with the limits.

    Args:
        spec: The job.
        plan: Plan of the job.
        ledger: Output of the job.
        before: Rows that earlier runs committed.

    Raises:
        TooManyFailedError: Too many rows failed already.
    """
    failed = sum(name.rows for name in ledger.objects(ERRORS)) if before else 0
    allowed = spec.limits.failed_allowed(plan.rows)
    # Object names count a row twice if two attempts committed it. Near the limit, the row ids are read.
    if allowed is not None and failed > allowed:
        failed = ledger.distinct_rows(ERRORS)
    found = Failures(spec, plan.rows, max(0, before - failed), failed, lambda: explained(ledger))
    if (error := found.check(Totals(), Snapshot())) is not None:
        raise error
    return found


def _add_earlier_totals(ledger: Ledger, progress: JobProgress, say: Callable[[str], None]) -> None:
    """Add the totals of earlier runs to the metrics, read from object footers while the engines start."""
    names = [*ledger.objects(RESULTS), *ledger.objects(ERRORS)]  # listed now: later objects belong to this run

    def read() -> None:
        try:
            progress.set_earlier_totals(ledger.totals(names))
        except Exception as error:  # noqa: BLE001 - a thread's boundary: metrics must not stop the job
            say(f"metrics: rows of earlier runs are not counted: {type(error).__name__}: {error}")

    threading.Thread(target=read, name="earlier-totals", daemon=True).start()


def _answer(
    job: JobContext,
    plan: Plan,
    ledger: Ledger,
    done: NDArray[np.int64],
    slots: int,
    observers: Observers,
) -> Run:
    """Run fleets until the ledger has every row.

    Args:
        job: The job, as replicas need it.
        plan: Plan of the job.
        ledger: Output of the job.
        done: int64 array (shards,): rows of each shard that are done.
        slots: Rows that one engine answers at once.
        observers: Observers of each fleet.

    Raises:
        TooManyFailedError: Too many rows failed.
        ClusterError: A fleet ended without committing a row.
    """
    the_run, committed = Run(), Totals()
    with observers.line:
        while (left := plan.rows - int(done.sum())) > 0:
            from magbatch.fleet.cluster import run_fleet

            serving = Serving(observers, committed)
            last = run_fleet(
                job,
                plan,
                done,
                serving,
                observers.lease.token,
                slots=slots,
                any_may_have_rows=observers.lease.inherited,
                first=the_run.serving_s == 0,
            )
            the_run.serving_s += serving.until - serving.since
            observers.line.progress.end_fleet()
            observers.log.end_fleet()
            committed = committed.plus(last.done)
            the_run.rows += last.done.rows
            the_run.tokens += last.done.generated_tokens
            the_run.engine_deaths += last.engine_deaths
            the_run.versions |= last.versions
            done = _listed(ledger, plan, plan.rows - left + last.done.rows)
            if plan.rows - int(done.sum()) >= left:
                raise ClusterError(
                    f"fleet: ended without a commit, {counted(left, 'row')} still open; run the same command again"
                )
    return the_run


def _listed(ledger: Ledger, plan: Plan, expected: int) -> NDArray[np.int64]:
    """Count the rows that are done, and wait if the listing lags: committed rows must not be paid for twice.

    Args:
        ledger: Output of the job.
        plan: Plan of the job.
        expected: Rows that are known to be committed.

    Returns:
        int64 array (shards,): rows of each shard that are done.
    """
    for wait_s in (*LATE_LISTING_S, 0.0):
        done = ledger.done_counts(plan)
        if int(done.sum()) >= min(expected, plan.rows):
            break
        time.sleep(wait_s)
    return done


def _finish(
    spec: JobSpec,
    plan: Plan,
    ledger: Ledger,
    args: EngineArgs,
    the_run: Run,
    progress: JobProgress,
    lease: Lease,
) -> Report:
    """Prove the output complete, then write report, page and manifest.

    Raises:
        StorageError: The listing still lacks rows after the last wait.
        JobError: The output is damaged, or the lease is lost.
    """
    user_id, missing = plan.output_name(spec.input.columns.id), list[str]()
    for wait_s in (*LATE_LISTING_S, 0.0):
        with DuplicateIds(user_id) as ids:
            maker = ReportMaker(spec, plan, ledger, args, the_run, progress, ids)
            _, missing = finalise(ledger, spec, plan, maker.observe, maker.files, lease.confirm, maker.wrong.observe)
            if not missing:
                return maker.report()
        time.sleep(wait_s)
    raise StorageError(
        f"{ledger.path}: {counted(len(missing), 'row is', 'rows are')} missing from the listed objects, although every "
        f"shard reported done; the first is {missing[0]}",
        passing=True,
    )
