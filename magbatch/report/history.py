"""The course of a job over time: a bounded number of points for the curves of the report."""

from typing import NamedTuple

HISTORY_POINTS = 512  # most points; a page 7 inches wide shows no more. Beyond it, every other point is dropped.
HISTORY_INTERVAL_S = 2.0  # between two points of a new job; it doubles each time points are dropped


class Point(NamedTuple):
    """State of a job at one moment, for the curves of the report.

    Attributes:
        at: Unix time (s).
        rows: Rows done.
        tokens: Reasoning and answer tokens of these rows.
        replicas: Replicas that serve.
    """

    at: float
    rows: int
    tokens: int
    replicas: int


class History:
    """Points of a job over time, thinned so that a job of any length has at most `HISTORY_POINTS`.

    Args:
        points: Points of earlier runs.

    Attributes:
        points: All points, oldest first.
    """

    def __init__(self, points: list[Point]) -> None:
        self.points = list(points)
        past_s = self.points[-1].at - self.points[0].at if self.points else 0.0
        self._interval_s = max(HISTORY_INTERVAL_S, past_s / HISTORY_POINTS)

    def add(self, point: Point, *, always: bool = False) -> None:
        """Add a point, unless the last one is younger than the interval.

        Args:
            point: The point.
            always: Whether the point is added in any case.
        """
        last = self.points[-1].at if self.points else 0.0
        if point.at - last < (0 if always else self._interval_s):
            return
        self.points.append(point)
        if len(self.points) > HISTORY_POINTS:
            self.points = self.points[::2]
            self._interval_s *= 2
