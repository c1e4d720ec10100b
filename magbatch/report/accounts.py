"""Accounts of a job and its retries: each retry's usage is added to the job's report exactly once.

It is added before the records of the retry are deleted.
"""

from contextlib import suppress
from dataclasses import asdict

from magbatch.errors import OutputError
from magbatch.ledger.ledger import Ledger
from magbatch.report.heartbeat import earlier
from magbatch.report.history import HISTORY_POINTS, Point
from magbatch.report.record import last_record, rewrite
from magbatch.report.report import Report
from magbatch.report.stored import stored_report
from magbatch.report.usage import JobUsage


def add_usage(report: Report, output: Ledger, number: int, rows: int) -> None:
    """Add the usage of a retry to the report of its job, unless the report counts that retry already.

    Args:
        report: Report of the job; usage, history and cost are changed in place.
        output: Output of the retry.
        number: Number of the retry, from 1.
        rows: Rows that the retry asked again.
    """
    if report.retries_counted >= number:
        return  # added by a command that was interrupted before the manifest counted the retry
    spent, history, cost, currency = _usage_of(output)
    before = report.history[-1].tokens if report.history else 0
    report.retries_counted = number
    report.spent = report.spent.plus(spent)
    report.history += [
        Point(point.at, report.planned - rows + point.rows, before + point.tokens, point.replicas) for point in history
    ]
    while len(report.history) > HISTORY_POINTS:
        report.history = report.history[::2]
    if cost is not None:
        report.cost, report.currency = (report.cost or 0.0) + cost, report.currency or currency


def publish_usage(report: Report, ledger: Ledger) -> None:
    """Copy usage, history and cost of the report into the run's own record, which `status` shows."""
    rewrite(
        ledger.store, spent=asdict(report.spent), history=report.history, cost=report.cost, currency=report.currency,
        failed=report.totals.failed,
    )  # fmt: skip


def _usage_of(output: Ledger) -> tuple[JobUsage, list[Point], float | None, str]:
    """Read usage, history, cost and currency of a retry from its report, else from its run's last record."""
    with suppress(OutputError):  # a damaged report
        if output.manifest() is not None:
            report = stored_report(output)
            return report.spent, report.history, report.cost, report.currency
    record = last_record(output.store)
    cost, currency = (None, "") if record is None else (record.get("cost"), record.get("currency", ""))
    return *earlier(output.store), cost, currency
