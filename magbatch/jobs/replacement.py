"""Replacement of objects of a complete job, because a retry answered some of their rows.

No object is edited. An object that loses rows is written again without them, and new answers get new objects.
"""

import functools
import itertools
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute

from magbatch.answers.grading import Grading
from magbatch.jobs.choice import filled_objects
from magbatch.ledger.contract import grading_of, narrow_columns, schema_of
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import Entry, Manifest
from magbatch.ledger.objects import Spool, StoredObject, damaged, read_columns, read_object, row_groups
from magbatch.ledger.units import units
from magbatch.plan.plan import Plan
from magbatch.rows import ReasoningStatus
from magbatch.schema import RESULTS, ObjectName, new_attempt
from magbatch.spec import JobSpec
from magbatch.totals import Totals

# Most objects of the retry in memory. Consecutive shards of the job take their rows from the same few objects.
CACHED_OBJECTS = 8


class Answers:
    """Answers of a complete retry.

    Args:
        output: Output of the retry.
        manifest: Manifest of the job.
        truncated: Whether the retry asked rows whose reasoning was truncated. A row that was truncated again then
            keeps its old answer.

    Attributes:
        holders: Row id of each row that gets a new answer, to the object of the retry that holds it.
        truncated: Rows that were truncated again and keep their old answer.
    """

    def __init__(self, output: Ledger, manifest: Manifest, *, truncated: bool) -> None:
        self._store = output.store
        self._checksums = filled_objects(manifest)
        self.holders: dict[str, ObjectName] = {}
        self.truncated = 0
        for name in (name for name in self._checksums if name.kind == RESULTS):
            table = read_columns(self._store, name, ["row_id", "reasoning_status"])
            status = pa.scalar(str(ReasoningStatus.TRUNCATED))
            cut = table.filter(pa.compute.equal(table.column("reasoning_status"), status))
            kept = set(cut.column("row_id").to_pylist()) if truncated else set()
            self.truncated += len(kept)
            rows: list[Any] = table.column("row_id").unique().to_pylist()
            self.holders |= dict.fromkeys((row_id for row_id in rows if row_id not in kept), name)
        self._load = functools.lru_cache(CACHED_OBJECTS)(self._read)

    def _read(self, name: ObjectName) -> pa.Table:
        return pa.concat_tables(row_groups(self._store, name, self._checksums[name]))

    def write(self, spool: Spool, row_ids: set[str]) -> None:
        """Add the answers of some rows to a spool."""
        for name in sorted({self.holders[row_id] for row_id in row_ids}):
            spool.add(_rows(self._load(name), row_ids, kept=True))


@dataclass(slots=True)
class Replacement:
    """Objects that replace others.

    Attributes:
        totals: Totals of the job after the replacement.
        grading: Comparison with the expected answers; None if the job has none.
        gone: Objects that are replaced.
        new: Manifest entries of the objects that replace them.
        new_ids: Whether a replaced row had no user id, because its input could not be read.
    """

    totals: Totals
    grading: Grading | None
    gone: list[ObjectName] = field(default_factory=list)
    new: list[Entry] = field(default_factory=list)
    new_ids: bool = False

    def remove(self, old: StoredObject) -> None:
        """Count an object as replaced."""
        self.gone.append(old.name)
        self.totals = self.totals.plus(Totals.of(old.name.kind, old.table, self.grading), -1)

    def add(self, new: StoredObject) -> None:
        """Count an object as new."""
        self.new.append(new.entry())
        self.totals = self.totals.plus(Totals.of(new.name.kind, new.table, self.grading))


def write_replacement(
    ledger: Ledger, spec: JobSpec, plan: Plan, manifest: Manifest, kind: str, answers: Answers
) -> Replacement:
    """Write the objects that replace those of a complete job.

    For example, `errors/` has one object of shard 7 with the dead letters of rows 1 and 2, and a retry answered row 2.
    Two new objects replace it: one in `errors/` with row 1, and one in `results/` with the answer to row 2.

    Args:
        ledger: Output of the job.
        spec: The job.
        plan: Plan of the job.
        manifest: Manifest of the job.
        kind: Kind of the objects that hold the retried rows now.
        answers: Answers of the retry.

    Raises:
        OutputError: An object is damaged, or lacks rows of the manifest.
    """
    checksums = filled_objects(manifest)
    of_shard: dict[int, set[str]] = {}
    for row_id, shard in plan.shards_of(answers.holders).items():
        of_shard.setdefault(shard, set()).add(row_id)
    writer = _Writer(ledger, spec, plan, checksums, Replacement(manifest.totals, grading_of(spec, plan)))
    for shards, names in units(sorted(checksums, key=lambda name: (name.shard, name)), plan.num_shards):
        row_ids = set().union(*(of_shard.get(shard, set()) for shard in shards))
        if row_ids:
            writer.replace(shards, [name for name in names if name.kind == kind], row_ids, answers)
    return writer.replacement


class _Writer:
    """Writer of the objects of a replacement, unit by unit.

    Args:
        ledger: Output of the job.
        spec: The job.
        plan: Plan of the job.
        checksums: Objects of the manifest, each with its SHA-256.
        replacement: Receives the objects that are written and replaced.
    """

    def __init__(
        self, ledger: Ledger, spec: JobSpec, plan: Plan, checksums: dict[ObjectName, str], replacement: Replacement
    ) -> None:
        self._store, self._spec, self._plan = ledger.store, spec, plan
        self._checksums, self.replacement = checksums, replacement
        self._more = narrow_columns(spec, plan)
        self._user_id = plan.output_name(spec.input.columns.id)
        self._attempt = new_attempt(plan.id)

    def replace(self, shards: range, names: list[ObjectName], row_ids: set[str], answers: Answers) -> None:
        """Replace the objects of some shards that hold answered rows.

        Args:
            shards: Consecutive shards.
            names: Objects of these shards that may hold the rows.
            row_ids: Rows with a new answer.
            answers: New answers.
        """
        numbers, replaced = itertools.count(), 0
        for name in names:
            found = read_object(self._store, name, self._more)
            if isinstance(found, str):
                raise damaged(self._store, found)
            mine = row_ids.intersection(found.row_ids)
            if not mine:
                continue
            self.replacement.remove(found)
            replaced += len(mine)
            if self._user_id is not None:
                ids = _rows(found.table, mine, kept=True).column(self._user_id)
                self.replacement.new_ids |= ids.null_count > 0
            if len(mine) < len(found.row_ids):
                self._write_rest(name, mine, next(numbers))
        if replaced != len(row_ids):
            raise damaged(self._store, f"shard {shards[0]}: its objects lack rows that the manifest counts")
        spool = Spool(RESULTS, schema_of(self._spec, self._plan, RESULTS))
        answers.write(spool, row_ids)
        self.replacement.add(spool.commit(self._store, shards, self._attempt, next(numbers), self._more))

    def _write_rest(self, name: ObjectName, without: set[str], number: int) -> None:
        """Write an object again, without the rows that have a new answer."""
        rest = Spool(name.kind, schema_of(self._spec, self._plan, name.kind))
        for table in row_groups(self._store, name, self._checksums[name]):
            rest.add(_rows(table, without, kept=False))
        self.replacement.add(rest.commit(self._store, name.shards, self._attempt, number, self._more))


def _rows(table: pa.Table, row_ids: set[str], *, kept: bool) -> pa.Table:
    """Records of some rows if `kept`, else all other records."""
    mask = pa.compute.is_in(table.column("row_id"), pa.array(list(row_ids), pa.string()))
    return table.filter(mask if kept else pa.compute.invert(mask))
