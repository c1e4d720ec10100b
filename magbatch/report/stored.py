"""Report and page of a complete job: reading, repair, and the last steps of a run that was interrupted at its end."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import Any

from magbatch.answers.grading import RULE
from magbatch.counts import counted
from magbatch.errors import LeaseError, OutputError, StorageError
from magbatch.ledger.contract import grading_of, narrow_columns
from magbatch.ledger.finalise import renew
from magbatch.ledger.layout import PAGE, REPORT
from magbatch.ledger.lease import Lease
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.letters import examples
from magbatch.ledger.manifest import VERSION, Manifest
from magbatch.ledger.objects import damaged, read_object
from magbatch.ledger.staging import read_named, staged
from magbatch.ledger.tidy import strays, tidy
from magbatch.plan.plan import Plan
from magbatch.report.heartbeat import earlier
from magbatch.report.page import report_files
from magbatch.report.record import last_record
from magbatch.report.report import Report, Run
from magbatch.report.scan import DuplicateIds, Slowest
from magbatch.schema import ObjectName
from magbatch.spec import JobSpec
from magbatch.spec.secrets import shown
from magbatch.totals import Totals


def stored_report(ledger: Ledger) -> Report:
    """Read the report of a complete job.

    Raises:
        OutputError: The report is missing or damaged, or differs from the manifest's checksum.
        StorageError: The storage does not answer.
    """
    manifest = ledger.manifest()
    try:
        data = ledger.store.read(REPORT) if manifest is None else read_named(ledger.store, manifest, REPORT)
        report = Report.from_dict(json.loads(data))
    except (FileNotFoundError, StorageError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, StorageError) and (error.passing or error.mistake):
            raise
        raise OutputError(
            f"{ledger.path}/{REPORT} is missing, damaged or changed ({type(error).__name__}), though the job is "
            "complete; no answer is lost: `magbatch run SPEC` makes the report again from the answers"
        ) from error
    report.totals = Totals() if manifest is None else manifest.totals
    return report


def whole(ledger: Ledger) -> list[ObjectName]:
    """Return the objects of a complete job that its manifest does not name.

    Raises:
        OutputError: Objects that the manifest names are missing.
    """
    extra, lost = strays(ledger)
    if lost:
        objects = counted(len(lost), "object of its manifest is", "objects of its manifest are")
        raise OutputError(
            f"{ledger.path}: the job is complete, but {objects} missing; the first is {lost[0]}. Restore "
            "lost objects, or set output.path to a new folder to run the job again"
        )
    return extra


def mend(ledger: Ledger, lease: Lease) -> None:
    """Finish the interrupted end of a complete job, and make a missing or changed report again.

    Nothing is done while a retry or a compaction holds the lease, because its new objects would look like strays.

    Args:
        ledger: Output of the job.
        lease: Lease on the output, not held yet.

    Raises:
        OutputError: Objects that the manifest names are missing.
        LeaseError: Another command holds the lease, and the report cannot be read.
    """
    manifest = ledger.manifest()
    if whole(ledger) or staged(ledger.store) or manifest is None or not _has_report(ledger, manifest):
        try:
            with lease.acquire():
                put_right(ledger, lease.confirm)
        except LeaseError:
            with suppress(OutputError):
                stored_report(ledger)
                return
            raise


def put_right(ledger: Ledger, confirm: Callable[[], None]) -> None:
    """Tidy the output of a complete job, and make its report again if it is missing or changed.

    A manifest of an older version is replaced by one of this version, with sums counted from the objects.

    Args:
        ledger: Output of the job.
        confirm: Function that raises LeaseError if another command works on the output.

    Raises:
        OutputError: The job is not complete, or its output is damaged.
    """
    tidy(ledger, confirm)
    spec, plan, manifest = ledger.complete_job()
    if manifest.version == VERSION and _has_report(ledger, manifest):
        return
    changes: dict[str, Any] = {}
    try:
        report = stored_report(ledger)
        if manifest.version < VERSION:
            report.totals = _new_report(ledger, spec, plan, manifest).totals
    except OutputError:
        report = _new_report(ledger, spec, plan, manifest)
    if manifest.version < VERSION:
        changes = {"totals": report.totals, "unknown_sums": frozenset(), "graded_by": RULE}
    report.retries_counted = len(manifest.retries)
    made = report_files(report)
    confirm()
    renew(ledger, spec, plan, manifest, [], [], made, **changes)


def _has_report(ledger: Ledger, manifest: Manifest) -> bool:
    """Whether report and page exist and match the manifest's checksums."""
    if manifest.version < VERSION:
        with suppress(OutputError):
            stored_report(ledger)
            return any(item.name == PAGE for item in ledger.store.list(PAGE))
        return False
    named = (manifest.file(REPORT), manifest.file(PAGE))
    return all(file is not None and file.fits(_load(ledger, file.name)) for file in named)


def _load(ledger: Ledger, name: str) -> bytes | None:
    """Read a file; None if it does not exist, or if something else has its name."""
    try:
        return ledger.load(name)
    except StorageError as error:
        if error.passing:
            raise
        return None


def _new_report(ledger: Ledger, spec: JobSpec, plan: Plan, manifest: Manifest) -> Report:
    """Make the report of a complete job from its objects; the usage comes from the last record of its run."""
    user_id, grading = plan.output_name(spec.input.columns.id), grading_of(spec, plan)
    totals, slowest, more = Totals(), Slowest(user_id), narrow_columns(spec, plan)
    with DuplicateIds(user_id) as ids:
        for entry in manifest.objects:
            found = read_object(ledger.store, entry.name, more, entry.sha256)
            if isinstance(found, str):
                raise damaged(ledger.store, found)
            totals.add(found.name.kind, found.table, grading)
            ids.observe(found.name.kind, found.table)
            slowest.observe(found.name.kind, found.table)
        repeated = ids.count() if user_id is not None else None
    record, (spent, history) = last_record(ledger.store), earlier(ledger.store)
    cost = None if record is None else record.get("cost")
    return Report(
        spec.name, ledger.path, plan.rows, totals, repeated, Run(), shown(spec.model_dump(mode="json")), spent,
        history, [], slowest.rows(), cost, spec.cost.currency, len(manifest.retries),
        ended=_unix_time(manifest.finished_at), letters=[asdict(one) for one in examples(ledger, totals.by_code)],
    )  # fmt: skip


def _unix_time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
