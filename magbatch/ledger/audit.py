"""Objects checked against the plan, unit by unit.

Two attempts at a shard (a replica that seemed dead, a retry) may leave a row in two objects. One rule keeps one
of them: an answer before a dead letter, then the attempt that started first. The rule uses the objects' names and
contents alone, so every caller gets the same result at any time.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from magbatch.ledger.ledger import READERS, Ledger
from magbatch.ledger.objects import StoredObject, read_object
from magbatch.ledger.units import Unit
from magbatch.plan.plan import Plan
from magbatch.schema import RESULTS, ObjectName

AUDIT_ROWS = 8192  # rows held in memory at once, except for a larger merged object: bounds the audit's memory


@dataclass(slots=True)
class Audit:
    """Result of checking one unit against the plan.

    Attributes:
        shards: Shards of the unit.
        names: All objects of the unit.
        keep: Objects that count, each with its row ids that count.
        superseded: Objects of which some or all rows do not count.
        foreign: Objects of another plan, which this job replaced: none of their rows count.
        missing: Ids of planned rows that are in no object.
        unplanned: Rows that are not planned, as `row ID in OBJECT`.
        problems: Damaged objects, and objects whose name gives another row count than their content.
    """

    shards: range
    names: list[ObjectName]
    keep: list[tuple[StoredObject, list[str]]] = field(default_factory=list)
    superseded: list[ObjectName] = field(default_factory=list)
    foreign: list[ObjectName] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unplanned: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def audit_output(
    ledger: Ledger,
    plan: Plan,
    more: dict[str, list[str]],
    checksums: Mapping[ObjectName, str] | None = None,
    only: Collection[ObjectName] | None = None,
) -> Iterator[Audit]:
    """Read every object whole and check it against the plan, unit by unit.

    Args:
        ledger: Output to check.
        plan: Plan of the job, with the ids of all rows.
        more: Columns to keep in each object's table, by kind, in addition to those that totals need.
        checksums: SHA-256 of objects, from a manifest; an object with another checksum is a problem and is not parsed.
        only: Objects to check; None for all.
    """
    known = checksums or {}

    def checked(window: list[Unit]) -> Iterator[Audit]:
        names = [name for unit in window for name in unit.names if not name.is_foreign(plan.id)]
        one_by_one = any(name.span > 1 for name in names)  # a merged object is large
        read = map if one_by_one else pool.map
        found = read(lambda name: read_object(ledger.store, name, more, known.get(name)), names)
        at_hand = dict(zip(names, found, strict=True))
        for shards, there in window:
            own = [(name, at_hand[name]) for name in there if name in at_hand]
            foreign = [name for name in there if name not in at_hand]
            yield audit_unit(shards, planned_rows(plan, shards), own, foreign)

    with ThreadPoolExecutor(READERS) as pool:
        window, rows, sizes = list[Unit](), 0, plan.shard_sizes
        for unit in ledger.units(plan, only):
            window.append(unit)
            planned = int(sizes[unit.shards.start : unit.shards.stop].sum())
            rows += max(planned, sum(name.rows for name in unit.names))
            if rows >= AUDIT_ROWS:
                yield from checked(window)
                window, rows = [], 0
        yield from checked(window)


def audit_unit(
    shards: range,
    planned: dict[str, int],
    objects: list[tuple[ObjectName, StoredObject | str]],
    foreign: Iterable[ObjectName] = (),
) -> Audit:
    """Decide which objects of a unit count, and which of their rows.

    Example: shard 0 has rows r0, r1, r2. An earlier attempt left `errors` with r0; a later one left `results` with
    r0 and r1. `results` counts with r0 and r1. `errors` is superseded. r2 is missing.

    Args:
        shards: Shards of the unit.
        planned: Shard of each planned row of the unit, by row id, in the order of the plan.
        objects: Objects of the unit, each with its content, or with the problem that prevents reading it.
        foreign: Objects of another plan; they are not read.
    """
    result = Audit(shards, [*(name for name, _ in objects), *foreign], foreign=[*foreign])
    taken: set[str] = set()
    for name, found in sorted(objects, key=lambda item: (item[0].kind != RESULTS, item[0].attempt, item[0].seq)):
        if isinstance(found, str):
            result.problems.append(found)
            continue
        known = {row_id for row_id in found.row_ids if planned.get(row_id, -1) in name.shards}
        result.unplanned += [f"row {row_id} in {name}" for row_id in found.row_ids if row_id not in known]
        kept = [row_id for row_id in found.row_ids if row_id in known and row_id not in taken]
        taken.update(kept)
        if len(kept) < len(found.row_ids):
            result.superseded.append(name)
        if kept or not found.row_ids:
            result.keep.append((found, kept))
    result.missing = [row_id for row_id in planned if row_id not in taken]
    return result


def planned_rows(plan: Plan, shards: range) -> dict[str, int]:
    """Shard of each planned row of some shards, by row id, in the order of the plan."""
    within = range(shards.start, min(shards.stop, plan.num_shards))
    return {row_id: shard for shard in within for row_id in plan.shard(shard).row_ids()}
