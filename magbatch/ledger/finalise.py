"""The end of a job: every object is read and held against the plan, then one manifest names those that count.

A retry and a compaction end with `renew`, which puts a manifest in the place of the one that they have seen.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute

from magbatch.answers.grading import RULE, Grading
from magbatch.errors import LeaseError, OutputError
from magbatch.ledger.layout import MANIFEST, NAMED_FILES, PAGE, PLAN, REPORT, SPEC
from magbatch.ledger.ledger import Ledger, grading_of, narrow_columns, schema_of
from magbatch.ledger.manifest import VERSION, Entry, Manifest, StoredFile
from magbatch.ledger.objects import Spool, StoredObject, row_groups
from magbatch.ledger.staging import place, stage
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESULTS, SCHEMA_VERSION, ObjectName, new_attempt
from magbatch.spec import JobSpec
from magbatch.totals import Totals


def finalise(
    ledger: Ledger,
    spec: JobSpec,
    plan: Plan,
    see: Callable[[str, pa.Table], None],
    report: Callable[[Totals], Mapping[str, bytes]],
    confirm: Callable[[], None],
    see_wrong: Callable[[pa.Table, Grading], None] = lambda *_: None,
) -> tuple[Totals, list[str]]:
    """Prove a job complete and write its report, its page, and its manifest, last.

    Args:
        ledger: Its output.
        spec: The job.
        plan: Its plan.
        see: Is given each kept object's kind and narrow columns, the carried ones included.
        report: Makes the report and its page of the totals: their contents by name.
        confirm: Is called before what only the holder of the lease may do; what it raises ends the work.
        see_wrong: Is given the results of each object that holds wrong answers.

    Returns:
        The totals, and the ids of rows that are still missing: with any of those, nothing is
        written and the job is not complete.

    Raises:
        OutputError: An object is damaged or unplanned.
        LeaseError: Another run has completed the job meanwhile.
    """
    grading, more = grading_of(spec, plan), narrow_columns(spec, plan)
    totals, missing, entries = Totals(), list[str](), list[Entry]()
    superseded: list[ObjectName] = []
    overlapping: list[tuple[ObjectName, list[str]]] = []

    def keep(part: StoredObject) -> None:
        wrong = totals.graded - totals.right
        totals.add(part.name.kind, part.table, grading)
        if grading is not None and totals.graded - totals.right > wrong:
            see_wrong(part.table, grading)
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
        superseded += [*audit.superseded, *audit.foreign]
        for part, row_ids in audit.keep:
            if len(row_ids) < len(part.row_ids):
                overlapping.append((part.name, row_ids))
            else:
                keep(part)
    if missing:
        return totals, missing
    for name, row_ids in overlapping:
        keep(_rewrite(ledger, spec, plan, name, row_ids))
    entries += _empty_parts(ledger, spec, plan, {entry.name.kind for entry in entries})
    before = {name: ledger.load(name) for name in (REPORT, PAGE)}
    confirm()
    made = report(totals)
    files = (*_frozen(ledger), *stage(ledger.store, made))
    _place(ledger, made, before)
    manifest = _first_manifest(spec, plan, totals, entries, files)
    # Only where none is: whoever was taken over, and wakes up here, must not put his in the place of the other's.
    if not ledger.store.create(MANIFEST, manifest.to_json()):
        raise LeaseError(f"{ledger.path}: another run has completed this job")
    for name in superseded:
        ledger.supersede(name)
    ledger.tidy(confirm)
    return totals, []


def _first_manifest(
    spec: JobSpec, plan: Plan, totals: Totals, entries: list[Entry], files: tuple[StoredFile, ...]
) -> Manifest:
    (of_plan,) = (file for file in files if file.name == PLAN)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        job=spec.name,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        planned_rows=plan.rows,
        plan_sha256=of_plan.sha256,
        totals=totals,
        objects=tuple(entries),
        files=files,
        model_revision=plan.revision,
        graded_by=RULE,
    )


def _frozen(ledger: Ledger) -> tuple[StoredFile, ...]:
    """The files that the start of the job has written."""
    return tuple(StoredFile.of(name, ledger.store.read(name)) for name in (SPEC, PLAN))


def _place(ledger: Ledger, made: Mapping[str, bytes], before: dict[str, bytes | None]) -> None:
    """Put report and page in their places, before the manifest: its presence says that all is there.

    Args:
        ledger: The output.
        made: Their contents.
        before: What was there when the lease was last confirmed, by an end that was interrupted. What came after that
            is another run's, which has taken the output over: its manifest may name it.
    """
    for name, old in before.items():
        data = made.get(name)
        if data is None:
            ledger.store.delete(name)
        elif not (ledger.store.create(name, data) if old is None else ledger.store.replace(name, data, old)):
            raise LeaseError(f"{ledger.path}: another run is at the end of this job")


def renew(
    ledger: Ledger,
    spec: JobSpec,
    plan: Plan,
    manifest: Manifest,
    gone: list[ObjectName],
    new: list[Entry],
    made: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Manifest:
    """Put a manifest in the place of another, in one write; the objects that it names are there already.

    Args:
        ledger: The output.
        spec: The job.
        plan: Its plan.
        manifest: The one that is replaced.
        gone: Objects that it names and the new one does not; moving them away is the caller's.
        new: Entries of objects that only the new one names.
        made: Contents of a new report and its page, by name. They come to their places after the manifest, by the
            next command if this one is interrupted.
        changes: Other fields of it.

    Raises:
        LeaseError: It is no longer the job's manifest.
    """
    without = set(gone)
    entries = [entry for entry in manifest.objects if entry.name not in without] + new
    filled = {entry.name.kind for entry in entries if entry.rows}
    entries = [entry for entry in entries if entry.rows or entry.name.kind not in filled]
    entries += _empty_parts(ledger, spec, plan, {entry.name.kind for entry in entries})
    entries.sort(key=lambda entry: (entry.name.kind, entry.name.shard, str(entry.name)))
    files = {file.name: file for file in manifest.files}
    if manifest.version < VERSION:
        there = {name: ledger.load(name) for name in NAMED_FILES}
        files = {name: StoredFile.of(name, data) for name, data in there.items() if data is not None}
    files |= {file.name: file for file in stage(ledger.store, made or {})}
    named = tuple(files[name] for name in NAMED_FILES if name in files)
    renewed = replace(manifest, version=VERSION, objects=tuple(entries), files=named, **changes)
    old = ledger.load(MANIFEST)
    if old is None or Manifest.from_json(old) != manifest or not ledger.store.replace(MANIFEST, renewed.to_json(), old):
        raise LeaseError(f"{ledger.path}: another command has changed the manifest meanwhile; nothing was changed")
    place(ledger.store, renewed, made or {})
    return renewed


def _rewrite(ledger: Ledger, spec: JobSpec, plan: Plan, name: ObjectName, row_ids: list[str]) -> StoredObject:
    """The rows of an object that count, as an object of their own: none is edited in place."""
    spool, wanted = Spool(name.kind, schema_of(spec, plan, name.kind)), pa.array(row_ids)
    for table in row_groups(ledger.store, name):
        spool.add(table.filter(pa.compute.is_in(table.column("row_id"), wanted)))
    return spool.commit(ledger.store, name.shards, new_attempt(plan.id), 0, narrow_columns(spec, plan))


def _empty_parts(ledger: Ledger, spec: JobSpec, plan: Plan, present: set[str]) -> Iterator[Entry]:
    """A folder without rows still opens with `results/*.parquet`, and has the contract's columns."""
    for kind in (RESULTS, ERRORS):
        if kind not in present:
            spool = Spool(kind, schema_of(spec, plan, kind))
            yield spool.commit(ledger.store, range(1), new_attempt(plan.id), 0, {}).entry()
