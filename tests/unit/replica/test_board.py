"""Records that replicas report: usage adds up, and a snapshot counts its slots."""

import pytest

from magbatch.replica.board import MAX_SILENCE_S, MIN_SILENCE_S, Slot, Snapshot, State, Usage, silence_s


def test_usage_adds_up_with_its_histogram() -> None:
    one = Usage(short_s=1.5, commits=2, commit_bytes=10, by_commit={"0.1": 2})
    two = Usage(short_s=0.5, preemptions=3, commits=1, by_commit={"0.1": 1, "+Inf": 1})
    assert one.plus(two) == Usage(2.0, 3, 3, 0, 10, 0, {"0.1": 3, "+Inf": 1})
    assert one == Usage(short_s=1.5, commits=2, commit_bytes=10, by_commit={"0.1": 2})


@pytest.mark.parametrize(
    ("row_timeout_s", "seconds"), [(None, MAX_SILENCE_S), (1.0, MIN_SILENCE_S), (300.0, 300.0), (1e6, MAX_SILENCE_S)]
)
def test_a_replica_may_be_silent_for_as_long_as_a_row_within_bounds(
    row_timeout_s: float | None, seconds: float
) -> None:
    assert silence_s(row_timeout_s) == seconds


def test_a_snapshot_counts_replicas_by_state_and_the_replaced_ones() -> None:
    slots = [Slot(0, State.SERVING, joins=3), Slot(1, State.LOST, joins=1), Slot(2, State.STARTING)]
    snapshot = Snapshot(slots=slots)
    assert (snapshot.replicas, snapshot.count(State.LOST), snapshot.restarts) == (1, 1, 2)
