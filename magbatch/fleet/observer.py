"""The caller of a running fleet: it sees the state of the fleet, shows messages to a person, and may end the run."""

from typing import Protocol

from magbatch.errors import JobError
from magbatch.replica.board import Snapshot


class FleetObserver(Protocol):
    """Observer of a run's fleet. It shows a person the progress, and may end the run."""

    def watch(self, snapshot: Snapshot) -> JobError | None:
        """Take the state of the fleet, a few times a second.

        Returns:
            An error that ends the run once finished rows are committed; None to continue.
        """

    def say(self, message: str) -> None:
        """Show one line to a person: the cause that keeps replicas waiting."""
