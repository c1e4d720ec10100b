"""The replicas that must report to the board, their open rows, and the seconds of their silence."""

from dataclasses import dataclass, field

MOST_BETWEEN_LOOKS_S = 1.0  # most silence counted between two looks; the driver looks a few times a second


@dataclass(slots=True)
class Reporter:
    """A replica that has its devices, even if another replica has its slot.

    Attributes:
        actor: Ray's id of its actor.
        rows: Shard index to ids of its open rows.
        serves: Whether its engine has started.
        silent_s: Seconds without a report in which the board itself was awake.
        reports: Number of the last report, from 1; 0 before the first.
    """

    actor: str
    rows: dict[int, list[str]] = field(default_factory=dict)
    serves: bool = False
    silent_s: float = 0.0
    reports: int = 0


class Silence:
    """Measure of the silence of replicas; only time in which the board was awake counts.

    Args:
        silence_s: Seconds without a report after which a serving replica is to be ended.
        now: Time on the board's clock (s).
    """

    def __init__(self, silence_s: float, now: float) -> None:
        self.silence_s = silence_s
        self._looked = now
        self._reporters: dict[str, Reporter] = {}

    def join(self, replica: str, actor: str) -> None:
        """Add a replica, in place of an earlier process of the same actor.

        Args:
            replica: Name of the replica.
            actor: Ray's id of its actor; if it is empty, the replica is not watched.
        """
        for name, reporter in list(self._reporters.items()):
            if actor and reporter.actor == actor:
                del self._reporters[name]
        if actor:
            self._reporters[replica] = Reporter(actor)

    def rows(self, replica: str) -> dict[int, list[str]] | None:
        """Shard index to ids of a replica's open rows; None if the replica is not watched."""
        reporter = self._reporters.get(replica)
        return None if reporter is None else reporter.rows

    def announce(self, replica: str, rows: dict[int, list[str]]) -> None:
        """Replace a replica's open rows."""
        if (reporter := self._reporters.get(replica)) is not None:
            reporter.rows = rows

    def heard(self, replica: str, rows: dict[int, list[str]], number: int | None) -> bool:
        """Note a report.

        Args:
            replica: Name of the replica.
            rows: Shard index to ids of its open rows.
            number: Number of the report, from 1; None for a report that is never repeated.

        Returns:
            Whether this report was heard before.
        """
        reporter = self._reporters.get(replica)
        if reporter is None:
            return False
        reporter.serves, reporter.silent_s, reporter.rows = True, 0.0, rows
        before = number is not None and number <= reporter.reports
        reporter.reports = max(reporter.reports, number or 0)
        return before

    def left(self, replica: str) -> None:
        """Stop watching a replica."""
        self._reporters.pop(replica, None)

    def silent(self, now: float) -> list[tuple[str, str]]:
        """Name, and Ray's id of the actor, of each replica that has been silent for too long."""
        # If the board itself stood still with its node, it heard no reports, but no replica was silent.
        passed = min(now - self._looked, MOST_BETWEEN_LOOKS_S)
        self._looked = now
        for reporter in self._reporters.values():
            reporter.silent_s += passed
        return [
            (name, reporter.actor)
            for name, reporter in self._reporters.items()
            if reporter.serves and reporter.silent_s > self.silence_s
        ]
