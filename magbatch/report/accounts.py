"""What a retry has used belongs to its job: added to the job's report once, before the retry's own records go."""

from contextlib import suppress
from dataclasses import asdict

from magbatch.errors import OutputError
from magbatch.ledger.ledger import Ledger
from magbatch.report.heartbeat import earlier, last_record, rewrite
from magbatch.report.progress import HISTORY_POINTS, JobUsage, Point
from magbatch.report.report import Report
from magbatch.report.stored import stored_report


def add_use(report: Report, place: Ledger, number: int, rows: int) -> None:
    """Add what a retry has used to the report of its job; nothing where that was done before.

    Args:
        report: The job's.
        place: The retry's own output.
        number: Counts the retries of the job, from 1.
        rows: That it asked again.
    """
    if report.retries_counted >= number:
        return  # by a command that was interrupted before the manifest counted the retry
    spent, history, cost, currency = _use(place)
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


def tell_use(report: Report, ledger: Ledger) -> None:
    """Make the run's account of itself, which `status` shows, say what the report does."""
    rewrite(
        ledger.store, spent=asdict(report.spent), history=report.history, cost=report.cost, currency=report.currency,
        failed=report.totals.failed,
    )  # fmt: skip


def _use(place: Ledger) -> tuple[JobUsage, list[Point], float | None, str]:
    """What a retry has used, its history and its cost: of its report, else as it said last."""
    with suppress(OutputError):  # its report is damaged
        if place.manifest() is not None:
            report = stored_report(place)
            return report.spent, report.history, report.cost, report.currency
    record = last_record(place.store) or {}
    return *earlier(place.store), record.get("cost"), record.get("currency", "")
