"""A job of any length has a bounded number of points, and keeps its ends."""

from magbatch.report.history import HISTORY_INTERVAL_S, HISTORY_POINTS, History, Point


def point(at: float) -> Point:
    return Point(at, int(at), 10 * int(at), 1)


def test_points_nearer_than_the_interval_are_left_out() -> None:
    history = History([])
    for tenth in range(100):
        history.add(point(1000 + tenth / 10))
    gaps = [new.at - old.at for old, new in zip(history.points, history.points[1:], strict=False)]
    assert min(gaps) >= HISTORY_INTERVAL_S
    history.add(point(1009.95), always=True)
    assert history.points[-1].at == 1009.95


def test_a_long_history_is_thinned_and_keeps_its_begin() -> None:
    history = History([])
    for second in range(0, 100_000, 2):
        history.add(point(1000.0 + second))
        assert len(history.points) <= HISTORY_POINTS
    assert len(history.points) > HISTORY_POINTS / 4
    assert history.points[0].at == 1000.0
    assert history.points == sorted(history.points)


def test_a_history_of_earlier_runs_keeps_its_interval() -> None:
    week = [point(1000.0 + 1181 * number) for number in range(HISTORY_POINTS)]
    history = History(week)
    history.add(point(week[-1].at + 600))
    assert len(history.points) == HISTORY_POINTS, "the interval of a week of points is 1180 s"
    assert week == history.points
