"""Units of an output: groups of shards whose objects can be checked without the rest of the job."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from magbatch.schema import ObjectName


class Unit(NamedTuple):
    """Consecutive shards whose rows lie in no object of another unit.

    Attributes:
        shards: Shard numbers; more than one if a merged object holds rows of several shards.
        names: Objects that hold rows of these shards, ordered by first shard.
    """

    shards: range
    names: list[ObjectName]


def units(names: Iterable[ObjectName], num_shards: int) -> Iterator[Unit]:
    """Group objects into units.

    Each planned shard is in exactly one unit, even without objects. A merged object holds rows of several
    shards, so it joins them into one unit. Units of shards that are not planned come last.

    Example: a plan of 5 shards; object `a` of shard 0, merged object `b` of shards 2 and 3, object `c` of shard 3.

        shards 0..0: a
        shards 1..1: (nothing)
        shards 2..3: b, c
        shards 4..4: (nothing)

    Args:
        names: Objects of both kinds, ordered by first shard.
        num_shards: Number of shards in the plan.
    """
    begin, end, found = 0, 0, list[ObjectName]()
    for name in names:
        if name.shard < end:
            found.append(name)
            end = max(end, name.shards.stop)
            continue
        if found:
            yield Unit(range(begin, end), found)
        for shard in range(end, min(name.shard, num_shards)):
            yield Unit(range(shard, shard + 1), [])
        begin, end, found = name.shard, name.shards.stop, [name]
    if found:
        yield Unit(range(begin, end), found)
    for shard in range(end, num_shards):
        yield Unit(range(shard, shard + 1), [])
