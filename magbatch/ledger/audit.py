"""The objects of a shard, or of a few that merged objects tie together, held against the plan.

Two attempts at a shard (a zombie replica, a retry) may leave a row in two objects. The rule that
keeps one: an answer before a dead letter, then the attempt that began first. It depends on the
objects alone, so whoever applies it, and however often, comes to the same answer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from magbatch.ledger.objects import StoredObject
from magbatch.schema import RESULTS, ObjectName


def units(parts: Iterable[ObjectName], num_shards: int) -> Iterator[tuple[range, list[ObjectName]]]:
    """What can be looked at on its own: a shard with its objects, or the shards that merged objects tie together.

    Args:
        parts: Of both kinds, in the order of their first shards.
        num_shards: Shards of the plan. Each is in one unit, whether it has objects or not; then come
            units of shards that no plan knows.
    """
    begin, end, found = 0, 0, list[ObjectName]()
    for part in parts:
        if part.shard < end:
            found.append(part)
            end = max(end, part.shards.stop)
            continue
        if found:
            yield range(begin, end), found
        for shard in range(end, min(part.shard, num_shards)):
            yield range(shard, shard + 1), []
        begin, end, found = part.shard, part.shards.stop, [part]
    if found:
        yield range(begin, end), found
    for shard in range(end, num_shards):
        yield range(shard, shard + 1), []


@dataclass(slots=True)
class Audit:
    """What the objects of a unit hold, held against the plan.

    Attributes:
        shards: The unit's shards.
        keep: Each object that counts, with the rows of it that count.
        superseded: Objects of which nothing, or not everything, counts.
        foreign: Objects that were written for another plan, in whose place this one is: none of their rows count.
        missing: Planned rows that are in no object.
        unplanned: Rows that no plan knows, as `row id in object`.
        problems: Damaged objects, and names that say another count than their content.
        names: Every object of the unit.
    """

    shards: range
    names: list[ObjectName]
    keep: list[tuple[StoredObject, list[str]]] = field(default_factory=list)
    superseded: list[ObjectName] = field(default_factory=list)
    foreign: list[ObjectName] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unplanned: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def audit_unit(
    shards: range,
    planned: dict[str, int],
    parts: list[tuple[ObjectName, StoredObject | str]],
    foreign: Iterable[ObjectName] = (),
) -> Audit:
    """Which objects of a unit count, by the rule that keeps one of two: see the module's docstring.

    Args:
        shards: The unit's shards.
        planned: Its rows, in the order of the plan, and the shard of each.
        parts: Its objects as they were found.
        foreign: Objects of another plan, which are not looked into.
    """
    audit = Audit(shards, [name for name, _ in parts], foreign=[*foreign])
    audit.names += audit.foreign
    owned: set[str] = set()
    for name, part in sorted(parts, key=lambda item: (item[0].kind != RESULTS, item[0].attempt, item[0].seq)):
        if isinstance(part, str):
            audit.problems.append(part)
            continue
        known = {row_id for row_id in part.row_ids if planned.get(row_id, -1) in name.shards}
        audit.unplanned += [f"row {row_id} in {name}" for row_id in part.row_ids if row_id not in known]
        mine = [row_id for row_id in part.row_ids if row_id in known and row_id not in owned]
        owned.update(mine)
        if len(mine) < len(part.row_ids):
            audit.superseded.append(name)
        if mine or not part.row_ids:
            audit.keep.append((part, mine))
    audit.missing = [row_id for row_id in planned if row_id not in owned]
    return audit
