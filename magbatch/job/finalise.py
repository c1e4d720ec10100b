"""The end of a job: every object is read and held against the plan, then one manifest names those that count.

A retry and a compaction end with `renew`, which puts a manifest in the place of the one that they have seen.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute

from magbatch.errors import LeaseError, OutputError
from magbatch.grading import RULE
from magbatch.job.ledger import MANIFEST, PLAN, Ledger, grading_of, narrow_columns, schema_of
from magbatch.job.parts import Part, Spool, row_groups
from magbatch.job.plan import Plan
from magbatch.rows import ERRORS, RESULTS, SCHEMA_VERSION, PartName, new_attempt
from magbatch.spec import JobSpec
from magbatch.totals import Totals


def finalise(
    ledger: Ledger,
    spec: JobSpec,
    plan: Plan,
    see: Callable[[str, pa.Table], None],
    report: Callable[[Totals], None],
    confirm: Callable[[], None],
) -> tuple[Totals, list[str]]:
    """Prove a job complete and write its manifest, last.

    Args:
        ledger: Its output.
        spec: The job.
        plan: Its plan.
        see: Is given each kept object's kind and narrow columns, the carried ones included.
        report: Is given the totals before the manifest is written.
        confirm: Is called before what only the holder of the lease may do; what it raises ends the work.

    Returns:
        The totals, and the ids of rows that are still missing: with any of those, nothing is
        written and the job is not complete.

    Raises:
        OutputError: An object is damaged or unplanned.
        LeaseError: Another run has completed the job meanwhile.
    """
    grading, more = grading_of(spec, plan), narrow_columns(spec, plan)
    totals, missing, entries = Totals(), list[str](), list[dict[str, Any]]()
    superseded: list[PartName] = []
    overlapping: list[tuple[PartName, list[str]]] = []

    def keep(part: Part) -> None:
        totals.add(part.name.kind, part.table, grading)
        entries.append(part.entry())
        see(part.name.kind, part.table)

    for audit in ledger.audit(plan, more):
        if audit.problems or audit.unplanned:
            confirm()  # to a run that was taken over, the other's work would look like damage
            wrong = "\n".join(f"  {line}" for line in [*audit.problems, *audit.unplanned][:20])
            raise OutputError(
                f"{ledger.path}: the output is damaged:\n{wrong}\nFor the whole list: magbatch verify {ledger.path}"
            )
        missing += audit.missing
        superseded += audit.superseded
        for part, row_ids in audit.keep:
            if len(row_ids) < len(part.row_ids):
                overlapping.append((part.name, row_ids))
            else:
                keep(part)
    if missing:
        return totals, missing
    for name, row_ids in overlapping:
        keep(_rewrite(ledger, spec, plan, name, row_ids))
    entries += _empty_parts(ledger, spec, plan, {entry["name"].partition("/")[0] for entry in entries})
    manifest = {
        "version": 1,
        "schema_version": SCHEMA_VERSION,
        "job": spec.name,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "planned_rows": plan.rows,
        "plan_sha256": hashlib.sha256(ledger.store.read(PLAN)).hexdigest(),
        **({} if plan.revision is None else {"model_revision": plan.revision}),
        "graded_by": RULE,
        **asdict(totals),
        "parts": entries,
    }
    confirm()
    report(totals)
    # Only where none is: whoever was taken over, and wakes up here, must not put his in the place of the other's.
    if not ledger.store.create(MANIFEST, json.dumps(manifest, indent=1).encode()):
        raise LeaseError(f"{ledger.path}: another run has completed this job")
    for name in superseded:
        ledger.supersede(name)
    ledger.tidy(confirm)
    return totals, []


def renew(
    ledger: Ledger,
    spec: JobSpec,
    plan: Plan,
    manifest: dict[str, Any],
    gone: list[PartName],
    new: list[dict[str, Any]],
    **changes: Any,
) -> dict[str, Any]:
    """Put a manifest in the place of another, in one write; the objects that it names are there already.

    Args:
        ledger: The output.
        spec: The job.
        plan: Its plan.
        manifest: The one that is replaced.
        gone: Objects that it names and the new one does not; moving them away is the caller's.
        new: Entries of objects that only the new one names.
        changes: Other fields of it.

    Raises:
        LeaseError: It is no longer the job's manifest.
    """
    without = {str(name) for name in gone}
    entries = [entry for entry in manifest["parts"] if entry["name"] not in without]
    entries += new
    filled = {entry["name"].partition("/")[0] for entry in entries if entry["rows"]}
    entries = [entry for entry in entries if entry["rows"] or entry["name"].partition("/")[0] not in filled]
    entries += _empty_parts(ledger, spec, plan, {entry["name"].partition("/")[0] for entry in entries})
    renewed = manifest | changes | {"parts": sorted(entries, key=lambda entry: _place(entry["name"]))}
    old = ledger.load(MANIFEST)
    if (
        old is None
        or json.loads(old) != manifest
        or not ledger.store.replace(MANIFEST, json.dumps(renewed, indent=1).encode(), old)
    ):
        raise LeaseError(f"{ledger.path}: another command has changed the manifest meanwhile; nothing was changed")
    return renewed


def _rewrite(ledger: Ledger, spec: JobSpec, plan: Plan, name: PartName, row_ids: list[str]) -> Part:
    """The rows of an object that count, as an object of their own: none is edited in place."""
    spool, wanted = Spool(name.kind, schema_of(spec, plan, name.kind)), pa.array(row_ids)
    for table in row_groups(ledger.store, name):
        spool.add(table.filter(pa.compute.is_in(table.column("row_id"), wanted)))
    return spool.commit(ledger.store, name.shards, new_attempt(), 0, narrow_columns(spec, plan))


def _empty_parts(ledger: Ledger, spec: JobSpec, plan: Plan, present: set[str]) -> Iterator[dict[str, Any]]:
    """A folder without rows still opens with `results/*.parquet`, and has the contract's columns."""
    for kind in (RESULTS, ERRORS):
        if kind not in present:
            spool = Spool(kind, schema_of(spec, plan, kind))
            yield spool.commit(ledger.store, range(1), new_attempt(), 0, {}).entry()


def _place(name: str) -> tuple[str, int, str]:
    return name.partition("/")[0], PartName.of(name).shard, name
