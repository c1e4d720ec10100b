"""The caller of a running fleet: it sees the state of the fleet, shows messages to a person, and may end the run."""

from typing import Protocol

from magbatch.errors import JobError
from magbatch.replica.board import Snapshot


class FleetObserver(Protocol):
    """Watches the fleet of a run, shows a person where it stands, and may end the run."""

    def watch(self, snapshot: Snapshot) -> JobError | None:
        """Take the state of the fleet, a few times a second.

        Returns:
            An error to end the run with once finished rows are committed; None to go on.
        """

    def say(self, message: str) -> None:
        """Show one line to a person: what keeps replicas waiting."""
