"""Units: every planned shard is in exactly one, and a merged object joins its shards."""

from hypothesis import given, settings
from hypothesis import strategies as st

from magbatch.ledger.units import units
from magbatch.schema import RESULTS, ObjectName


def name(shard: int, span: int = 1) -> ObjectName:
    return ObjectName(RESULTS, shard, "a", 0, 1, span)


def test_a_merged_object_joins_its_shards() -> None:
    a, b, c = name(0), name(2, span=2), name(3)
    assert list(units([a, b, c], 5)) == [
        (range(1), [a]),
        (range(1, 2), []),
        (range(2, 4), [b, c]),
        (range(4, 5), []),
    ]


def test_shards_that_are_not_planned_come_last() -> None:
    late = name(7)
    assert list(units([late], 2)) == [(range(1), []), (range(1, 2), []), (range(7, 8), [late])]


@settings(max_examples=80, derandomize=True, deadline=None)
@given(spans=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), max_size=8), num_shards=st.integers(0, 12))
def test_every_planned_shard_and_every_object_is_in_one_unit(spans: list[tuple[int, int]], num_shards: int) -> None:
    names = [name(shard, span) for shard, span in sorted(spans)]
    found = list(units(names, num_shards))
    shards = [shard for unit in found for shard in unit.shards]
    assert len(shards) == len(set(shards))
    assert set(range(num_shards)) <= set(shards)
    assert [one for unit in found for one in unit.names] == names
    assert all(set(one.shards) <= set(unit.shards) for unit in found for one in unit.names)
