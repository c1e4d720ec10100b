"""Many small objects -> a few of a target size, with no moment in which the manifest names a row twice or not at all.

The new objects come first, and are read back; then one manifest names them in the place of the old; then the old
go. An object holds the rows of consecutive shards, and both kinds are cut at the same shards, so that what can be
audited on its own stays small. Interrupted anywhere, the manifest that is there is true, and what it does not name
is moved away by the next command.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from magbatch.ledger.audit import planned_rows
from magbatch.ledger.contract import schema_of
from magbatch.ledger.finalise import renew
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import Entry
from magbatch.ledger.objects import ROW_GROUP_BYTES, Spool, damaged, row_groups
from magbatch.ledger.open import hold, patient_ledger
from magbatch.ledger.tidy import tidy
from magbatch.ledger.units import units
from magbatch.plan.plan import Plan
from magbatch.report.stored import put_right
from magbatch.schema import ERRORS, RESULTS, ObjectName, new_attempt
from magbatch.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Compacted:
    """What `compact` came to.

    Attributes:
        job: The job's name.
        objects_before: That the manifest named.
        objects: That it names now.
        merged: Those of the old that are gone; 0 where there was nothing to do.
        bytes_before: Of all objects.
        bytes: Of all objects now.
    """

    job: str
    objects_before: int
    objects: int
    merged: int
    bytes_before: int
    bytes: int


class _Group:
    """Units on their way into one object of each kind."""

    def __init__(self, ledger: Ledger, spec: JobSpec, plan: Plan, target_bytes: int) -> None:
        self._ledger, self._spec, self._plan = ledger, spec, plan
        group_bytes = min(ROW_GROUP_BYTES, target_bytes // 4)
        self._spools = {kind: Spool(kind, schema_of(spec, plan, kind), group_bytes) for kind in (RESULTS, ERRORS)}
        self.shards = range(0)
        self.old: list[ObjectName] = []

    @property
    def bytes(self) -> int:
        return max(spool.bytes for spool in self._spools.values())

    def take(self, shards: range, parts: dict[ObjectName, str]) -> None:
        """Add a unit: its objects with their checksums."""
        for name, sha256 in parts.items():
            for table in row_groups(self._ledger.store, name, sha256):
                self._spools[name.kind].add(table)
        self.shards = range(self.shards.start if self.old else shards.start, shards.stop)
        self.old += parts

    def commit(self, attempt: str) -> list[Entry]:
        """Write what was taken, with every row of these shards once, or raise OutputError; returns manifest entries."""
        row_ids = [row_id for spool in self._spools.values() for row_id in spool.row_ids]
        planned = planned_rows(self._plan, self.shards)
        if len(row_ids) != len(planned) or set(row_ids) != planned.keys():
            where = f"shards {self.shards[0]} to {self.shards[-1]}"
            raise damaged(self._ledger.store, f"{where}: their objects do not hold every planned row once")
        return [
            spool.commit(self._ledger.store, self.shards, attempt, 0, {}).entry()
            for spool in self._spools.values()
            if spool.row_ids
        ]


def compact(output: str, target_bytes: int, console: Console) -> Compacted:
    """Merge the objects of a complete job.

    Args:
        output: Its output.
        target_bytes: Size of an object. The memory that this takes is about twice as much.
        console: Where it says what it waits for.

    Raises:
        OutputError: There is no complete job here, or it is damaged.
        LeaseError: A run, a retry or another compaction works on it.
        StorageError: The storage refuses.
    """
    spec, _, _ = Ledger(output).complete_job()
    ledger = patient_ledger(spec.with_output(output), console)
    command = ("compact", "--target-mb", str(target_bytes // 1_000_000))
    with hold(ledger.path, console.print, spec.output.patience_s, command) as lease:
        put_right(ledger, lease.confirm)
        return merge_objects(ledger, target_bytes, lease.confirm)


def merge_objects(ledger: Ledger, target_bytes: int, confirm: Callable[[], None]) -> Compacted:
    """The work of `compact`, for who holds the output.

    Args:
        ledger: The output, tidy.
        target_bytes: Size of an object.
        confirm: Is called before the manifest is renewed; what it raises ends the work.
    """
    spec, plan, manifest = ledger.complete_job()
    entries = {entry.name: entry for entry in manifest.objects if entry.rows}
    # What a compaction to this size has left as one object is left alone, whatever size compression made it.
    settled = manifest.compacted_to_bytes == target_bytes
    attempt, gone, new = new_attempt(plan.id), list[ObjectName](), list[Entry]()
    group: _Group | None = None

    def close(group: _Group | None) -> None:
        if group is not None and not _whole(group.old, group.shards):
            new.extend(group.commit(attempt))
            gone.extend(group.old)

    for shards, parts in units(sorted(entries, key=lambda part: (part.shard, part)), plan.num_shards):
        sizes = [sum(entries[part].bytes for part in parts if part.kind == kind) for kind in (RESULTS, ERRORS)]
        if _whole(parts, shards) and (settled or max(sizes) >= target_bytes):
            close(group)
            group = None
            continue
        group = group or _Group(ledger, spec, plan, target_bytes)
        group.take(shards, {part: entries[part].sha256 for part in parts})
        if group.bytes >= target_bytes:
            close(group)
            group = None
    close(group)
    before = manifest
    if gone:
        confirm()
        manifest = renew(ledger, spec, plan, manifest, gone, new, compacted_to_bytes=target_bytes)
        for name in gone:
            ledger.store.delete(str(name))  # not kept as superseded: every row of it lives on unchanged
        tidy(ledger, confirm)
    return Compacted(
        job=manifest.job,
        objects_before=len(before.objects),
        objects=len(manifest.objects),
        merged=len(gone),
        bytes_before=sum(entry.bytes for entry in before.objects),
        bytes=sum(entry.bytes for entry in manifest.objects),
    )


def _whole(parts: list[ObjectName], shards: range) -> bool:
    """Whether a unit has nothing to merge: one object of a kind at most, for all of its shards."""
    return all(part.shards == shards for part in parts) and len({part.kind for part in parts}) == len(parts)
