"""Where the replicas of one run meet: what they report, and what the driver reads.

The board outlives every replica: what one of them has committed or used stays counted when it is gone. A replica's
place in the fleet has a number, which whoever comes after it takes over, so that a week of restarts makes no more
series of metrics than there are places.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

from magbatch.engines.base import EngineLoad
from magbatch.errors import JobError
from magbatch.replica.losses import Home, Loss
from magbatch.totals import Totals, summed

COMMIT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)
MIN_SILENCE_S, MAX_SILENCE_S = 60.0, 600.0  # until a replica that does not report is ended


@dataclass(slots=True)
class Load:
    """How a replica is at the moment.

    Attributes:
        in_flight: Rows inside the engine.
        waiting: Rows that are at hand and wait for the engine.
        engine: What the engine says of itself.
        finished: Rows that wait for their commit.
    """

    in_flight: int = 0
    waiting: int = 0
    engine: EngineLoad = field(default_factory=EngineLoad)
    finished: int = 0


@dataclass(slots=True)
class Usage:
    """What a replica did beside answering, since it last reported; or the sum of that.

    Attributes:
        short_s: Seconds in which the engine had free slots; progress.json and report.json hold it under this name.
        preemptions: Sequences that the engine put back for want of KV cache.
        commits: Objects written.
        commit_ms: Milliseconds that this took, tries that were refused included.
        commit_bytes: Bytes of them.
        commit_retries: Tries that the output's storage refused.
        by_commit: Objects by the upper bound of the seconds that each took (`COMMIT_BOUNDS_S`, or `+Inf`).
    """

    short_s: float = 0.0
    preemptions: int = 0
    commits: int = 0
    commit_ms: int = 0
    commit_bytes: int = 0
    commit_retries: int = 0
    by_commit: dict[str, int] = field(default_factory=dict)

    def plus(self, other: Self) -> Self:
        """Return the sums of both."""
        return summed(self, other)


def silence_s(row_timeout_s: float | None) -> float:
    """Seconds without a report after which a replica is ended.

    Args:
        row_timeout_s: The spec's `limits.row_timeout_s`: how long a row may stand still.
    """
    return min(MAX_SILENCE_S, max(MIN_SILENCE_S, row_timeout_s or MAX_SILENCE_S))


class State(StrEnum):
    """Where a replica is. A closed list."""

    STARTING = "starting"
    SERVING = "serving"
    LOST = "lost"  # silent, or gone, and not replaced yet


class Order(StrEnum):
    """What the driver asks of a replica. A closed list."""

    NONE = ""
    STOP = "stop"  # the run ends: what is finished is committed
    GIVE_BACK = "give back"  # another job is to have the devices


class Board(Protocol):
    """The board, as a replica sees it: the driver keeps it, for the length of one run."""

    async def begin(self, shard: int) -> tuple[bool, dict[str, int]]:
        """Whether this is the run's first attempt at a shard, and the strikes against its rows."""

    async def announce(self, replica: str, rows: dict[int, list[str]]) -> None:
        """The rows that the replica is at, or about to begin, by shard."""

    async def strike(self, replica: str, rows: dict[int, list[str]], why: str) -> None:
        """The replica's engine died, or hangs, with these rows in flight, by shard; `why` says which in words."""

    async def report(self, replica: str, done: Totals, use: Usage, load: Load, rows: dict[int, list[str]]) -> Order:
        """Add to the job's counts; what the replica is asked for. `rows` are those that it is at, by shard."""

    async def trouble(self, message: str) -> None:
        """Something keeps the replica waiting: one line for a person."""

    async def left(self, replica: str, why: str = "") -> None:
        """The replica ends; `why` says in words what has ended it, where another is to take its place."""

    async def broke(self, replica: str, cause: str) -> None:
        """The replica ends by a defect of its own."""


@dataclass(slots=True)
class Slot:
    """One place in the fleet, and what its replicas did one after the other.

    Attributes:
        number: From 0.
        state: Of the replica that has it.
        done: What its replicas have committed.
        usage: Their other work, summed.
        load: How the one that serves is; empty while none does.
        seconds: For which replicas have held it, their engines' starts included.
        joins: Replicas that have had it.
    """

    number: int
    state: State = State.STARTING
    done: Totals = field(default_factory=Totals)
    usage: Usage = field(default_factory=Usage)
    load: Load = field(default_factory=Load)
    seconds: float = 0.0
    joins: int = 0


@dataclass(slots=True)
class Snapshot:
    """The state of a run at one moment.

    Attributes:
        done: What this run has committed.
        slots: Of replicas that serve, start, or did so.
        starting: Whether none has served yet.
        engine_error: What the first of the engines that failed to start said; None if all started.
        failed_starts: Engines that failed to start since one did.
        engine_deaths: Engines that died while rows were in them.
        starved_s: Seconds, over all replicas, in which an engine had free slots while rows remained to be begun.
        input_errors: Refusals of the input's storage that were waited out.
        trouble: What keeps replicas waiting, with its number; None while nothing ever did.
        failure: What stops the job, from the task or replica that met it first; None while nothing does.
        silent: Name, and Ray's id of the actor, of each replica that serves and has not reported for too long.
        versions: Package to version, of the nodes.
        lost: Replicas that ended while rows were to be answered.
        losses: The last of these.
        failed_home: Where the engine of `engine_error` was to start.
    """

    done: Totals = field(default_factory=Totals)
    slots: list[Slot] = field(default_factory=list)
    starting: bool = True
    engine_error: str | None = None
    failed_starts: int = 0
    engine_deaths: int = 0
    starved_s: float = 0.0
    input_errors: int = 0
    trouble: tuple[int, str] | None = None
    failure: JobError | None = None
    silent: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    losses: list[Loss] = field(default_factory=list)
    failed_home: Home = field(default_factory=Home)

    def count(self, state: State) -> int:
        """Replicas in a state."""
        return sum(slot.state == state for slot in self.slots)

    @property
    def replicas(self) -> int:
        """Replicas that serve."""
        return self.count(State.SERVING)

    @property
    def restarts(self) -> int:
        """Replicas that took the place of one that had ended."""
        return sum(max(0, slot.joins - 1) for slot in self.slots)


SnapshotObserver = Callable[
    [Snapshot], JobError | None
]  # an error ends the run with it, once what is finished is committed
