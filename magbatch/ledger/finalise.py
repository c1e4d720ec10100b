"""The end of a job: every object is checked against the plan, then one manifest names the objects that count.

A retry and a compaction end with `renew`, which replaces exactly the manifest that they have read.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute

from magbatch.answers.grading import RULE, Grading
from magbatch.errors import LeaseError, OutputError
from magbatch.ledger.audit import Audit, audit_output
from magbatch.ledger.contract import grading_of, narrow_columns, schema_of
from magbatch.ledger.layout import MANIFEST, NAMED_FILES, PAGE, PLAN, REPORT, SPEC
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import VERSION, Entry, Manifest, StoredFile
from magbatch.ledger.objects import Spool, StoredObject, row_groups
from magbatch.ledger.staging import place, stage
from magbatch.ledger.tidy import supersede, tidy
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESULTS, SCHEMA_VERSION, ObjectName, new_attempt
from magbatch.spec import JobSpec
from magbatch.totals import Totals

SHOWN_PROBLEMS = 20  # problems in the error of a damaged output; `magbatch verify` lists all


def finalise(
    ledger: Ledger,
    spec: JobSpec,
    plan: Plan,
    observe: Callable[[str, pa.Table], None],
    report: Callable[[Totals], Mapping[str, bytes]],
    confirm: Callable[[], None],
    observe_wrong: Callable[[pa.Table, Grading], None] = lambda *_: None,
) -> tuple[Totals, list[str]]:
    """Prove a job complete, then write its report, its page and, last, its manifest.

    Args:
        ledger: Output of the job, held by this command.
        spec: Spec of the job.
        plan: Plan of the job, with the ids of all rows.
        observe: Function that receives kind and narrow columns of each object that counts.
        report: Function that makes the report and its page from the totals: contents by file name.
        confirm: Function that is called before each step reserved for the lease's holder; it raises to stop the work.
        observe_wrong: Function that receives the narrow columns of each object with wrong answers.

    Returns:
        The totals; ids of planned rows that are in no object. If any row is missing, nothing is written and the job
        is not complete.

    Raises:
        OutputError: An object is damaged, or holds rows that are not planned.
        LeaseError: Another run has completed the job.
    """
    tally = _Tally(grading_of(spec, plan), observe, observe_wrong)
    missing, superseded = list[str](), list[ObjectName]()
    overlapping: list[tuple[ObjectName, list[str]]] = []
    for audit in audit_output(ledger, plan, narrow_columns(spec, plan)):
        if audit.problems or audit.unplanned:
            confirm()  # if another run took the output over, its work in progress would look like damage
            raise _damage(ledger, audit)
        missing += audit.missing
        superseded += [*audit.superseded, *audit.foreign]
        for found, row_ids in audit.keep:
            if len(row_ids) < len(found.row_ids):
                overlapping.append((found.name, row_ids))
            else:
                tally.add(found)
    if missing:
        return tally.totals, missing
    for name, row_ids in overlapping:
        tally.add(_rewrite(ledger, spec, plan, name, row_ids))
    tally.entries += _empty_objects(ledger, spec, plan, {entry.name.kind for entry in tally.entries})
    _complete(ledger, spec, plan, tally, report, confirm)
    for name in superseded:
        supersede(ledger, name)
    tidy(ledger, confirm)
    return tally.totals, []


class _Tally:
    """Objects that count, and the sums over them.

    Args:
        grading: Rule that compares answers with right answers; None if there are none.
        observe: Function that receives kind and narrow columns of each object.
        observe_wrong: Function that receives the narrow columns of each object with wrong answers.

    Attributes:
        totals: Sums over the objects.
        entries: Objects as the manifest will name them.
    """

    def __init__(
        self,
        grading: Grading | None,
        observe: Callable[[str, pa.Table], None],
        observe_wrong: Callable[[pa.Table, Grading], None],
    ) -> None:
        self.totals, self.entries = Totals(), list[Entry]()
        self._grading, self._observe, self._observe_wrong = grading, observe, observe_wrong

    def add(self, found: StoredObject) -> None:
        """Count an object."""
        wrong_before = self.totals.graded - self.totals.right
        self.totals.add(found.name.kind, found.table, self._grading)
        if self._grading is not None and self.totals.graded - self.totals.right > wrong_before:
            self._observe_wrong(found.table, self._grading)
        self.entries.append(found.entry())
        self._observe(found.name.kind, found.table)


def _damage(ledger: Ledger, audit: Audit) -> OutputError:
    problems = [*audit.problems, *audit.unplanned][:SHOWN_PROBLEMS]
    listed = "\n".join(f"  {line}" for line in problems)
    return OutputError(
        f"{ledger.path}: the output is damaged:\n{listed}\nFor the whole list: magbatch verify {ledger.path}"
    )


def _complete(
    ledger: Ledger,
    spec: JobSpec,
    plan: Plan,
    tally: _Tally,
    report: Callable[[Totals], Mapping[str, bytes]],
    confirm: Callable[[], None],
) -> None:
    """Write the report, its page, and the manifest that makes the job complete."""
    before = {name: ledger.load(name) for name in (REPORT, PAGE)}
    confirm()
    made = report(tally.totals)
    frozen = tuple(StoredFile.of(name, ledger.store.read(name)) for name in (SPEC, PLAN))
    files = (*frozen, *stage(ledger.store, made))
    _put_in_place(ledger, made, before)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        job=spec.name,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
        planned_rows=plan.rows,
        plan_sha256=next(file.sha256 for file in frozen if file.name == PLAN),
        totals=tally.totals,
        objects=tuple(tally.entries),
        files=files,
        model_revision=plan.revision,
        graded_by=RULE,
    )
    # Create, never replace: a run that was taken over and wakes up here must not overwrite its successor's manifest.
    if not ledger.store.create(MANIFEST, manifest.to_json()):
        raise LeaseError(f"{ledger.path}: another run has completed this job")


def _put_in_place(ledger: Ledger, made: Mapping[str, bytes], before: dict[str, bytes | None]) -> None:
    """Write report and page under their final names, before the manifest: a manifest says that everything exists.

    Args:
        ledger: Output of the job, held by this command.
        made: New contents, by file name.
        before: Contents when the lease was last confirmed, left by an interrupted end. Any other content belongs to
            a run that has taken the output over, and its manifest may name it.
    """
    for name, old in before.items():
        data = made.get(name)
        if data is None:
            ledger.store.delete(name)
        elif not (ledger.store.create(name, data) if old is None else ledger.store.replace(name, data, old)):
            raise LeaseError(f"{ledger.path}: another run is completing this job")


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
    """Replace a manifest in one write; the objects that the new one names exist already.

    Args:
        ledger: Output of the job, held by this command.
        spec: Spec of the job.
        plan: Plan of the job.
        manifest: Manifest to replace.
        gone: Objects to drop from the manifest; the caller moves them away afterwards.
        new: Objects to add to the manifest.
        made: Contents of a new report and its page, by file name. They get their final names after the manifest is
            written; if this command is interrupted, the next command moves them.
        changes: Other fields of the manifest, with their new values.

    Returns:
        The new manifest.

    Raises:
        LeaseError: The stored manifest is no longer the one to replace.
    """
    entries = _entries_after(ledger, spec, plan, manifest, gone, new)
    files = _files_after(ledger, manifest, made or {})
    renewed = replace(manifest, version=VERSION, objects=tuple(entries), files=files, **changes)
    old = ledger.load(MANIFEST)
    if old is None or Manifest.from_json(old) != manifest or not ledger.store.replace(MANIFEST, renewed.to_json(), old):
        raise LeaseError(f"{ledger.path}: another command has changed the manifest; this one has changed nothing")
    place(ledger.store, renewed, made or {})
    return renewed


def _entries_after(
    ledger: Ledger, spec: JobSpec, plan: Plan, manifest: Manifest, gone: list[ObjectName], new: list[Entry]
) -> list[Entry]:
    """Objects of the new manifest; an empty object stays only while its kind has no rows."""
    without = set(gone)
    entries = [entry for entry in manifest.objects if entry.name not in without] + new
    filled = {entry.name.kind for entry in entries if entry.rows}
    entries = [entry for entry in entries if entry.rows or entry.name.kind not in filled]
    entries += _empty_objects(ledger, spec, plan, {entry.name.kind for entry in entries})
    return sorted(entries, key=lambda entry: (entry.name.kind, entry.name.shard, str(entry.name)))


def _files_after(ledger: Ledger, manifest: Manifest, made: Mapping[str, bytes]) -> tuple[StoredFile, ...]:
    """The job's own files as the new manifest names them; new contents are staged."""
    files = {file.name: file for file in manifest.files}
    if manifest.version < VERSION:  # an older manifest has no checksums of files
        there = {name: ledger.load(name) for name in NAMED_FILES}
        files = {name: StoredFile.of(name, data) for name, data in there.items() if data is not None}
    files |= {file.name: file for file in stage(ledger.store, made)}
    return tuple(files[name] for name in NAMED_FILES if name in files)


def _rewrite(ledger: Ledger, spec: JobSpec, plan: Plan, name: ObjectName, row_ids: list[str]) -> StoredObject:
    """Copy the rows of an object that count into a new object; no object is edited in place."""
    spool, wanted = Spool(name.kind, schema_of(spec, plan, name.kind)), pa.array(row_ids)
    for table in row_groups(ledger.store, name):
        spool.add(table.filter(pa.compute.is_in(table.column("row_id"), wanted)))
    return spool.commit(ledger.store, name.shards, new_attempt(plan.id), 0, narrow_columns(spec, plan))


def _empty_objects(ledger: Ledger, spec: JobSpec, plan: Plan, present: set[str]) -> Iterator[Entry]:
    """Write an empty object of each kind without objects, so that `results/*.parquet` can be read with its columns."""
    for kind in (RESULTS, ERRORS):
        if kind not in present:
            spool = Spool(kind, schema_of(spec, plan, kind))
            yield spool.commit(ledger.store, range(1), new_attempt(plan.id), 0, {}).entry()
