"""The durations of a scheduler fit together."""

from magbatch.schedule.timing import DEFAULT


def test_a_store_is_waited_for_before_it_counts_as_late() -> None:
    assert 0 < DEFAULT.pass_s <= DEFAULT.answer_s < DEFAULT.late_s


def test_ticks_may_commit_before_they_are_killed() -> None:
    assert DEFAULT.end_s > 25 + DEFAULT.pass_s
