"""What lies beside the answers of a complete job: its report, and what an interrupted end has left undone."""

import json
from contextlib import suppress

from magbatch.counts import counted
from magbatch.errors import LeaseError, OutputError
from magbatch.job.finalise import renew
from magbatch.job.layout import PAGE, REPORT
from magbatch.job.lease import Lease
from magbatch.job.ledger import Ledger
from magbatch.job.manifest import Manifest
from magbatch.job.page import report_files
from magbatch.job.report import Report
from magbatch.job.staging import is_settled, read_named
from magbatch.rows import PartName
from magbatch.totals import Totals


def stored_report(ledger: Ledger) -> Report:
    """The report of a complete job.

    Raises:
        OutputError: It is not there, damaged, or not what the manifest names.
    """
    manifest = ledger.manifest()
    try:
        data = ledger.store.read(REPORT) if manifest is None else read_named(ledger.store, manifest, REPORT)
        report = Report.from_dict(json.loads(data))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{ledger.path}/{REPORT} is missing, damaged or changed ({type(error).__name__}), though the job is "
            f"complete; the answers are not touched by it: magbatch verify {ledger.path}"
        ) from error
    report.totals = Totals() if manifest is None else manifest.totals
    return report


def whole(ledger: Ledger) -> list[PartName]:
    """The objects of a complete job that its manifest does not name.

    Raises:
        OutputError: Objects that it names are gone.
    """
    strays, lost = ledger.strays()
    if lost:
        objects = counted(len(lost), "object of its manifest is", "objects of its manifest are")
        raise OutputError(
            f"{ledger.path}: the job is complete, but {objects} gone; the first is {lost[0]}. Bring them "
            "back, or set output.path to a new place to run it again"
        )
    return strays


def mend(ledger: Ledger, lease: Lease) -> None:
    """Do what an interrupted end of a complete job has left undone, and write a page that is missing.

    Args:
        ledger: The output.
        lease: Not held yet. Whoever holds it is a retry or a compaction, whose objects are no strays: then nothing
            is done.

    Raises:
        OutputError: Objects that the manifest names are gone.
    """
    if whole(ledger) or not is_settled(ledger.store) or not _has_page(ledger, ledger.manifest()):
        with suppress(LeaseError), lease.held():
            ledger.tidy(lease.confirm)
            _add_page(ledger, lease)


def _add_page(ledger: Ledger, lease: Lease) -> None:
    spec, plan, manifest = ledger.complete_job()
    if not _has_page(ledger, manifest):
        page = {name: data for name, data in report_files(stored_report(ledger)).items() if name == PAGE}
        lease.confirm()
        renew(ledger, spec, plan, manifest, [], [], page)


def _has_page(ledger: Ledger, manifest: Manifest | None) -> bool:
    there = any(item.name == PAGE for item in ledger.store.list(PAGE))
    return there and (manifest is None or manifest.version == 1 or manifest.file(PAGE) is not None)
