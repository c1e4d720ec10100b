"""The run and the process around a replica."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from magbatch.ledger.holder import LeaseToken
from magbatch.replica.board import Board
from magbatch.replica.timing import Timing


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The run and the process around a replica.

    Attributes:
        name: Name of the replica on the board.
        board: Board of the run, for reports and strikes.
        die: Callback that ends this process: an engine that is gone does not come back.
        notice: Event that is set when this process is about to be killed; None if there is no such signal.
        token: Token of the run's lease; None if no other run can take the output.
        timing: Durations in seconds; tests pass shorter ones.
    """

    name: str
    board: Board
    die: Callable[[], None]
    notice: threading.Event | None = None
    token: LeaseToken | None = None
    timing: Timing = field(default_factory=Timing)
