"""Compaction of a complete job: many small objects become a few of a target size.

At every moment, the objects of the manifest hold each row exactly once. New objects are written and read back, a new
manifest names them instead of the old objects, and the old objects are deleted. An object holds the rows of consecutive
shards. `results/` and `errors/` are cut at the same shards, so that each group can be audited by itself. After an
interruption the manifest is still true, and the next command moves objects away that it does not name.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from magbatch.ledger.audit import planned_rows
from magbatch.ledger.contract import schema_of
from magbatch.ledger.finalise import renew
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import Entry, Manifest
from magbatch.ledger.objects import ROW_GROUP_BYTES, Spool, damaged, row_groups
from magbatch.ledger.open import hold, patient_ledger
from magbatch.ledger.tidy import tidy
from magbatch.ledger.units import units
from magbatch.plan.plan import Plan
from magbatch.report.stored import put_right
from magbatch.schema import ERRORS, RESULTS, ObjectName, new_attempt
from magbatch.spec import JobSpec


@dataclass(frozen=True, slots=True)
class CompactOutcome:
    """Outcome of a compaction.

    Attributes:
        job: Name of the job.
        objects_before: Objects that the manifest named before.
        objects: Objects that the manifest names now.
        merged: Old objects that were merged and deleted; 0 if there was nothing to merge.
        bytes_before: Size of all objects before (bytes).
        bytes: Size of all objects now (bytes).
    """

    job: str
    objects_before: int
    objects: int
    merged: int
    bytes_before: int
    bytes: int


class _Group:
    """Units that become one object of each kind.

    Args:
        ledger: The output.
        spec: Spec of the job, for the columns of its objects.
        plan: Plan of the job, for the rows of its shards.
        target_bytes: Wanted size of an object (bytes).

    Attributes:
        shards: Shards of the units, consecutive.
        old: Objects of the units.
    """

    def __init__(self, ledger: Ledger, spec: JobSpec, plan: Plan, target_bytes: int) -> None:
        self._ledger, self._plan = ledger, plan
        group_bytes = min(ROW_GROUP_BYTES, target_bytes // 4)
        self._spools = {kind: Spool(kind, schema_of(spec, plan, kind), group_bytes) for kind in (RESULTS, ERRORS)}
        self.shards = range(0)
        self.old: list[ObjectName] = []

    @property
    def bytes(self) -> int:
        """Bytes spooled so far, of `results` or of `errors`, whichever is larger."""
        return max(spool.bytes for spool in self._spools.values())

    def take(self, shards: range, objects: dict[ObjectName, str]) -> None:
        """Add a unit.

        Args:
            shards: Shards of the unit.
            objects: Objects of the unit, each with its SHA-256.
        """
        for name, sha256 in objects.items():
            for table in row_groups(self._ledger.store, name, sha256):
                self._spools[name.kind].add(table)
        self.shards = range(self.shards.start if self.old else shards.start, shards.stop)
        self.old += objects

    def commit(self, attempt: str) -> list[Entry]:
        """Write the new objects.

        Args:
            attempt: Attempt id for the names of the new objects.

        Returns:
            Manifest entries of the new objects.

        Raises:
            OutputError: The old objects do not hold every planned row exactly once.
        """
        row_ids = [row_id for spool in self._spools.values() for row_id in spool.row_ids]
        planned = planned_rows(self._plan, self.shards)
        if len(row_ids) != len(planned) or set(row_ids) != planned.keys():
            where = f"shards {self.shards[0]} to {self.shards[-1]}"
            raise damaged(self._ledger.store, f"{where}: the objects do not hold every planned row exactly once")
        return [
            spool.commit(self._ledger.store, self.shards, attempt, 0, {}).entry()
            for spool in self._spools.values()
            if spool.row_ids
        ]


def compact(output: str, target_bytes: int, console: Console) -> CompactOutcome:
    """Merge the objects of a complete job.

    Args:
        output: Path or URL of the output.
        target_bytes: Wanted size of an object (bytes). Compaction needs about twice as much memory.
        console: Console for progress messages.

    Raises:
        OutputError: The output holds no complete job, or is damaged.
        LeaseError: A run, a retry or another compaction works on the output.
        StorageError: The storage refuses.
    """
    spec, _, _ = Ledger(output).complete_job()
    ledger = patient_ledger(spec.with_output(output), console)
    command = ("compact", "--target-mb", str(target_bytes // 1_000_000))
    with hold(ledger.path, console.print, spec.output.patience_s, command) as lease:
        put_right(ledger, lease.confirm)
        return merge_objects(ledger, target_bytes, lease.confirm)


def merge_objects(ledger: Ledger, target_bytes: int, confirm: Callable[[], None]) -> CompactOutcome:
    """Merge the objects of a complete job whose lease the caller holds.

    Args:
        ledger: The output, tidied by `put_right`.
        target_bytes: Wanted size of an object (bytes).
        confirm: Called before the manifest is renewed; raises LeaseError if the lease is lost.
    """
    spec, plan, manifest = ledger.complete_job()
    gone, new = _write_merged(ledger, spec, plan, manifest, target_bytes)
    before = manifest
    if gone:
        confirm()
        manifest = renew(ledger, spec, plan, manifest, gone, new, compacted_to_bytes=target_bytes)
        for name in gone:
            ledger.store.delete(str(name))  # not kept as superseded: each of its rows is in a new object
        tidy(ledger, confirm)
    return CompactOutcome(
        job=manifest.job,
        objects_before=len(before.objects),
        objects=len(manifest.objects),
        merged=len(gone),
        bytes_before=sum(entry.bytes for entry in before.objects),
        bytes=sum(entry.bytes for entry in manifest.objects),
    )


def _write_merged(
    ledger: Ledger, spec: JobSpec, plan: Plan, manifest: Manifest, target_bytes: int
) -> tuple[list[ObjectName], list[Entry]]:
    """Write the merged objects.

    For example, with a target of 100 MB, three units of 40 MB become one object of 120 MB. A unit that is already one
    object of 120 MB is left alone.

    Returns:
        Names of the replaced objects, and manifest entries of the new objects.
    """
    entries = {entry.name: entry for entry in manifest.objects if entry.rows}
    # A unit that an earlier compaction to this size merged stays as it is: compression may have made it smaller.
    is_settled = manifest.compacted_to_bytes == target_bytes
    attempt, gone, new = new_attempt(plan.id), list[ObjectName](), list[Entry]()
    group: _Group | None = None

    def close(group: _Group | None) -> None:
        if group is not None and not _is_merged(group.old, group.shards):
            new.extend(group.commit(attempt))
            gone.extend(group.old)

    for shards, names in units(sorted(entries, key=lambda name: (name.shard, name)), plan.num_shards):
        sizes = [sum(entries[name].bytes for name in names if name.kind == kind) for kind in (RESULTS, ERRORS)]
        if _is_merged(names, shards) and (is_settled or max(sizes) >= target_bytes):
            close(group)
            group = None
            continue
        group = group or _Group(ledger, spec, plan, target_bytes)
        group.take(shards, {name: entries[name].sha256 for name in names})
        if group.bytes >= target_bytes:
            close(group)
            group = None
    close(group)
    return gone, new


def _is_merged(names: list[ObjectName], shards: range) -> bool:
    """Whether a unit has nothing to merge: at most one object of each kind, and each holds all shards of the unit."""
    return all(name.shards == shards for name in names) and len({name.kind for name in names}) == len(names)
